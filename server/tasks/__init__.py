"""Tasks: what a specialist is asked, and what its tokens mean."""
