"""A Django site: a shop, with admin, whose pages read from replicas."""
