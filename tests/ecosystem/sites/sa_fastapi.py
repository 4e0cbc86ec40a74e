"""fastapi-users and sqladmin, on one application of FastAPI's."""

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import fastapi_users
import sqladmin
from fastapi import FastAPI
from fastapi_users import schemas
from fastapi_users.authentication import AuthenticationBackend, BearerTransport, JWTStrategy
from fastapi_users.db import SQLAlchemyBaseUserTableUUID, SQLAlchemyUserDatabase
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from starlette.testclient import TestClient

import ps_sqlalchemy
from ps_sqlalchemy.middleware import ASGIMiddleware
from tests.ecosystem.script import STOCK, direct, url

SECRET = "a secret of more than 32 characters"
engine: Any = create_async_engine(url())
makers: Any = async_sessionmaker if STOCK else ps_sqlalchemy.async_sessionmaker
sessions = makers(engine, expire_on_commit=False)


class Base(orm.DeclarativeBase):
    """The site's tables."""


class User(SQLAlchemyBaseUserTableUUID, Base):
    """Copied from the documentation of fastapi-users."""


class Note(Base):
    """What the admin is about."""

    __tablename__ = "note"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    text: orm.Mapped[str]


Base.metadata.create_all(direct)


class UserManager(fastapi_users.UUIDIDMixin, fastapi_users.BaseUserManager[Any, uuid.UUID]):
    """Copied from its documentation."""

    reset_password_token_secret = verification_token_secret = SECRET


class UserRead(schemas.BaseUser[uuid.UUID]):
    """Copied from its documentation."""


class UserCreate(schemas.BaseUserCreate):
    """Copied from its documentation."""


class UserUpdate(schemas.BaseUserUpdate):
    """Copied from its documentation."""


class NoteAdmin(sqladmin.ModelView, model=Note):
    """Notes."""

    column_list = (Note.id, Note.text)
    column_searchable_list = (Note.text,)


async def get_user_manager() -> AsyncIterator[UserManager]:
    """Yield what manages users, in a session."""
    async with sessions() as session:
        yield UserManager(SQLAlchemyUserDatabase(session, User))


def get_strategy() -> JWTStrategy[Any, uuid.UUID]:
    """Return how tokens are made."""
    return JWTStrategy(secret=SECRET, lifetime_seconds=3600)


backend = AuthenticationBackend(name="jwt", transport=BearerTransport(tokenUrl="jwt/login"), get_strategy=get_strategy)
users = fastapi_users.FastAPIUsers[Any, uuid.UUID](get_user_manager, [backend])
app = FastAPI()
app.include_router(users.get_auth_router(backend), prefix="/jwt")
app.include_router(users.get_register_router(UserRead, UserCreate))
app.include_router(users.get_users_router(UserRead, UserUpdate), prefix="/users")
sqladmin.Admin(app, session_maker=makers(engine)).add_view(NoteAdmin)
if not STOCK:
    app.add_middleware(ASGIMiddleware, keys=["a secret"])
clients: list[TestClient] = []


@contextmanager
def running() -> Iterator[None]:
    """Serve the application."""
    with TestClient(app) as client:
        clients.append(client)
        yield
        assert client.portal is not None
        client.portal.call(engine.dispose)


def work() -> dict[str, Any]:
    """Register, log in, and change the address; make, change, find and delete a note in the admin."""
    (client,) = clients
    client.cookies.clear()
    name = uuid.uuid4().hex
    email, password = f"{name}@example.org", "a teapot for two"
    steps: list[Any] = [client.post("/register", json={"email": email, "password": password}).status_code]
    token = client.post("/jwt/login", data={"username": email, "password": password}).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    steps.append(client.get("/users/me", headers=headers).json()["email"] == email)
    steps.append(client.patch("/users/me", headers=headers, json={"email": f"new-{email}"}).status_code)
    steps.append(client.get("/users/me", headers=headers).json()["email"] == f"new-{email}")
    steps.append(client.post("/register", json={"email": f"new-{email}", "password": password}).json()["detail"])

    def found(text: str) -> bool:
        return f"{text} {name}" in client.get("/admin/note/list", params={"search": name}).text

    made = client.post(
        "/admin/note/create", data={"text": f"tea {name}", "save": "Save and continue editing"}, follow_redirects=False
    )
    pk = made.headers["location"].rsplit("/", 1)[1]
    steps += [made.status_code, found("tea"), f"tea {name}" in client.get(f"/admin/note/details/{pk}").text]
    steps += [client.post(f"/admin/note/edit/{pk}", data={"text": f"cake {name}"}, follow_redirects=False).status_code]
    steps += [found("cake"), client.delete("/admin/note/delete", params={"pks": pk}).status_code, found("cake")]
    return {"steps": steps}
