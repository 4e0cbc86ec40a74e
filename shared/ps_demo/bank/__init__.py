"""A bank in SQLAlchemy: accounts, and transfers between them."""
