"""The tables of the gateway, their migrations, and errors in our words; SQLite or PostgreSQL by URL."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sooner.core import ConfigError, DataError, EngineError, MissingExtra

try:
    import sqlalchemy as sa
except ImportError as error:
    raise MissingExtra("sqlalchemy", "gateway") from error

logger = logging.getLogger("sooner.gateway")

METADATA = sa.MetaData()

VERSION = sa.Table("sooner_version", METADATA, sa.Column("version", sa.Integer, nullable=False))

REQUESTS = sa.Table(
    "sooner_requests",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("model", sa.String(256), nullable=False),
    sa.Column("backend", sa.String(256), nullable=False),
    sa.Column("arrival_time", sa.Float, nullable=False),  # Unix time
    sa.Column("wait", sa.Float, nullable=False),  # the times that follow: seconds
    sa.Column("first_byte", sa.Float, nullable=False),
    sa.Column("total", sa.Float, nullable=False),
    sa.Column("prompt_len", sa.Integer, nullable=False),
    sa.Column("output_len", sa.Integer, nullable=False),
    sa.Column("counted", sa.Boolean, nullable=False),  # by the engine, else estimated here
    sa.Column("status", sa.Integer, nullable=False),  # 0: the reply was cut off
    sa.Column("stream", sa.Boolean, nullable=False),
    sa.Column("max_tokens", sa.Integer, nullable=False),
    sa.Column("score", sa.Float),
    sa.Column("predicted_len", sa.Float),
    sa.Column("prompt", sa.Text),
    sa.Column("temperature", sa.Float),
    sa.Column("tools", sa.Integer),
    sa.Column("structured", sa.Boolean),
    sa.Column("sender", sa.String(16)),  # hashes of who sent it and of its template
    sa.Column("template", sa.String(16)),
    sa.Column("messages", sa.Text),  # JSON; a request has a prompt or messages
    sa.Column("policy", sa.String(256)),  # the order that held when it ended
)

KEYS = sa.Table(
    "sooner_keys",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),  # SHA-256 of the whole key, hexadecimal
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("revoked", sa.Float),
)


def _with_columns(connection: sa.Connection, *names: str) -> None:
    """Add those of the requests' columns that the table was made without."""
    known = {column["name"] for column in sa.inspect(connection).get_columns(REQUESTS.name)}
    for name in names:
        if name not in known:
            kind = REQUESTS.c[name].type.compile(connection.dialect)
            connection.execute(sa.text(f"ALTER TABLE {REQUESTS.name} ADD COLUMN {name} {kind}"))


_MIGRATIONS = (
    # each takes the database from the version that is its place in this list to the next
    lambda connection: METADATA.create_all(connection),
    lambda connection: connection.execute(
        sa.text("CREATE INDEX IF NOT EXISTS sooner_requests_arrival ON sooner_requests (arrival_time)")
    ),
    lambda connection: _with_columns(connection, "temperature", "tools", "structured", "messages"),
    lambda connection: _with_columns(connection, "policy"),
    lambda connection: _with_columns(connection, "sender", "template"),
)


_BESIDE = ("-wal", "-shm", "-journal")  # what SQLite keeps beside its file
_OTHERS = 0o077
_MARK = b"SQLite format 3\0"  # the first bytes of each of its files


class Unavailable(EngineError):
    """The database cannot be used now."""


class Database:
    """One database, brought to the present version when it is first used."""

    def __init__(self, url: str) -> None:
        try:
            made = sa.make_url(url if "://" in url else f"sqlite:///{url}")
            if made.drivername in ("postgresql", "postgres"):
                made = made.set(drivername="postgresql+psycopg")
            self._sqlite = made.get_backend_name() == "sqlite"
            options = {"timeout": 5.0} if self._sqlite else {"connect_timeout": 5}
            self._engine = sa.create_engine(made, connect_args=options, pool_pre_ping=not self._sqlite)
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError) as error:
            raise ConfigError(
                f"database: {error}; allowed: sqlite:///file, or postgresql://... with sooner[postgres]"
            ) from error
        self._lock = threading.Lock()
        self._ready = False

    @property
    def file(self) -> Path | None:
        """The file that it is in, None where it is in none."""
        path = self._engine.url.database
        return Path(path) if self._sqlite and path not in (None, "", ":memory:") else None

    def must_exist(self, allowed: str = "a file that a gateway has written") -> None:
        """Raise DataError where it is a file that is not there, or another's: using it would change it."""
        path = self._engine.url.database
        if self._vanished():
            raise DataError(f"no database {path!r}; allowed: {allowed}")
        if self._is_anothers():
            raise DataError(f"{path!r} holds nothing of sooner's; allowed: {allowed}")

    def _is_anothers(self) -> bool:
        if self.file is None:
            return False
        try:
            return not sa.inspect(self._engine).has_table(VERSION.name)
        except sa.exc.OperationalError:  # it cannot be read now, and who reads it will say so
            return False
        except sa.exc.DatabaseError:
            return True

    def open(self) -> None:
        """Bring it to the present version. Raises Unavailable, and ConfigError where it is a newer one's."""
        with self.begin():
            return

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """Give a connection in a transaction. Raises Unavailable, and then nothing was written."""
        try:
            with self._lock:
                if self._ready and self._vanished():
                    self._engine.dispose()  # its open files would take rows that nobody finds again
                    self._ready = False
                if not self._ready:
                    self._migrate()
                    self._ready = True
            with self._engine.begin() as connection:
                yield connection
        except OSError as error:
            raise Unavailable(f"database {self._engine.url.render_as_string()}: {error}") from error
        except sa.exc.SQLAlchemyError as error:
            reason = str(error.args[0] if error.args else error)[:300]
            raise Unavailable(f"database {self._engine.url.render_as_string()}: {reason}") from error

    def _vanished(self) -> bool:
        path = self._engine.url.database
        return self._sqlite and path not in (None, "", ":memory:") and not Path(str(path)).exists()

    def close(self) -> None:
        """Close its connections."""
        self._engine.dispose()

    def _make_private(self) -> None:
        """See to it that no other user can read its files, which may hold what people asked."""
        file = self.file
        if file is None:
            return
        if not file.exists():
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        if not file.is_file() or _beginning(file) not in (b"", _MARK):
            raise ConfigError(f"{str(file)!r} is no database of SQLite, allowed: one, or a new name")
        for one in (file, *(file.with_name(file.name + end) for end in _BESIDE)):
            with contextlib.suppress(FileNotFoundError):
                _close_to_others(one)

    def _migrate(self) -> None:
        if self._sqlite:
            self._make_private()
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        with self._engine.begin() as connection:
            VERSION.create(connection, checkfirst=True)
            version = connection.execute(sa.select(sa.func.max(VERSION.c.version))).scalar() or 0
            if version > len(_MIGRATIONS):
                raise ConfigError(
                    f"the database has version {version}, allowed: at most {len(_MIGRATIONS)}; "
                    "it was written by a newer sooner"
                )
            for number in range(version, len(_MIGRATIONS)):
                _MIGRATIONS[number](connection)
                connection.execute(VERSION.insert().values(version=number + 1))


def _beginning(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(len(_MARK))


def _close_to_others(file: Path) -> None:
    """Take a file's rights from all but its owner, and say so; where that is not ours to do, say that."""
    mode = stat.S_IMODE(file.stat().st_mode)
    if not mode & _OTHERS:
        return
    try:
        file.chmod(mode & ~_OTHERS)
        logger.warning("%s could be read by other users (%04o); it is its owner's only now", file, mode)
    except PermissionError:
        logger.warning("%s can be read by other users (%04o), allowed: 0600", file, mode)
