"""The shop with SQLAlchemy's asyncio.

PS_URL=... PS_BOUNCER=write-pool PS_REPLICA_BOUNCER=read-pool SHOP_KEYS=... uvicorn --factory fastapi_app.app:from_environment
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, status
from fastapi.responses import JSONResponse
from sqlalchemy import select

from ps_core import DeadlineExceeded
from ps_sqlalchemy import AsyncSession, Topology, async_sessionmaker, create_async_engine
from ps_sqlalchemy.middleware import ASGIMiddleware

from .models import KnownProduct, NewProduct, Product


def make_app(topology: Topology, keys: list[str]) -> FastAPI:
    """Return the application. `keys` sign the cookie with which a user's next request sees the writes of the last one."""
    engine = create_async_engine(topology)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(ASGIMiddleware, keys=keys, identity=topology.identity, deadline="5s")

    # It closes the session and does not commit: FastAPI may end it when the response has left, and the cookie with it.
    async def get_session() -> AsyncIterator[AsyncSession]:
        async with sessions() as session:
            yield session

    @app.exception_handler(DeadlineExceeded)
    async def too_late(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({"detail": "it took too long"}, status.HTTP_504_GATEWAY_TIMEOUT)

    @app.get("/products", response_model=list[KnownProduct])
    async def list_products(session: Annotated[AsyncSession, Depends(get_session)]) -> object:
        return (await session.scalars(select(Product).order_by(Product.name))).all()

    @app.get("/products/{product_id}", response_model=KnownProduct)
    async def show_product(product_id: int, session: Annotated[AsyncSession, Depends(get_session)]) -> object:
        product = await session.get(Product, product_id)
        if product is None:
            raise HTTPException(status.HTTP_404_NOT_FOUND)
        return product

    @app.post("/products", response_model=KnownProduct, status_code=status.HTTP_201_CREATED)
    async def create_product(new: NewProduct, session: Annotated[AsyncSession, Depends(get_session)]) -> object:
        product = Product(**new.model_dump())
        session.add(product)
        await session.commit()
        return product

    return app


def from_environment() -> FastAPI:
    """Return the application for PS_URL, `PS_*` and SHOP_KEYS (secrets, separated by commas, of which the first signs)."""
    return make_app(Topology.from_env(), os.environ["SHOP_KEYS"].split(","))
