"""Workers: what they are asked, which of their replicas serve, and a fake one."""
