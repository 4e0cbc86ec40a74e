"""What the shop knows, in the database and on the wire."""

from decimal import Decimal

from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The tables."""


class Product(Base):
    """Something on sale."""

    __tablename__ = "shop_example_product"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    price: Mapped[Decimal]


class NewProduct(BaseModel):
    """A product as it is posted."""

    name: str
    price: Decimal


class KnownProduct(NewProduct):
    """A product as it is shown."""

    model_config = ConfigDict(from_attributes=True)

    id: int
