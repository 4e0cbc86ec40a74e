"""A small Django site: products, orders, and Django's admin."""
