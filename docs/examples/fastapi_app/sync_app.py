"""The shop with threads: FastAPI runs views that are plain functions in a pool of them. Start it like `app`."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, status
from fastapi.responses import JSONResponse
from sqlalchemy import select

from ps_core import DeadlineExceeded
from ps_sqlalchemy import Session, Topology, create_engine, sessionmaker
from ps_sqlalchemy.middleware import ASGIMiddleware

from .models import KnownProduct, NewProduct, Product


def make_app(topology: Topology, keys: list[str]) -> FastAPI:
    """Return the application. `keys` sign the cookie with which a user's next request sees the writes of the last one."""
    engine = create_engine(topology)
    sessions = sessionmaker(engine, expire_on_commit=False)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.dispose()

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(ASGIMiddleware, keys=keys, identity=topology.identity, deadline="5s")

    # It closes the session and does not commit: FastAPI may end it when the response has left, and the cookie with it.
    def get_session() -> Iterator[Session]:
        with sessions() as session:
            yield session

    @app.exception_handler(DeadlineExceeded)
    def too_late(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({"detail": "it took too long"}, status.HTTP_504_GATEWAY_TIMEOUT)

    @app.get("/products", response_model=list[KnownProduct])
    def list_products(session: Annotated[Session, Depends(get_session)]) -> object:
        return session.scalars(select(Product).order_by(Product.name)).all()

    @app.get("/products/{product_id}", response_model=KnownProduct)
    def show_product(product_id: int, session: Annotated[Session, Depends(get_session)]) -> object:
        product = session.get(Product, product_id)
        if product is None:
            raise HTTPException(status.HTTP_404_NOT_FOUND)
        return product

    @app.post("/products", response_model=KnownProduct, status_code=status.HTTP_201_CREATED)
    def create_product(new: NewProduct, session: Annotated[Session, Depends(get_session)]) -> object:
        product = Product(**new.model_dump())
        session.add(product)
        session.commit()
        return product

    return app


def from_environment() -> FastAPI:
    """Return the application for PS_URL, `PS_*` and SHOP_KEYS (secrets, separated by commas, of which the first signs)."""
    return make_app(Topology.from_env(), os.environ["SHOP_KEYS"].split(","))
