"""The airports: their source, and the table they are imported into."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import airportsdata
from airportsdata import Airport

from proj import settings

COLUMNS = ("icao", "iata", "name", "city", "subd", "country", "elevation", "lat", "lon", "tz", "lid")

_TABLE = """
    CREATE TABLE IF NOT EXISTS airports (
        icao TEXT PRIMARY KEY, iata TEXT, name TEXT, city TEXT, subd TEXT, country TEXT,
        elevation REAL, lat REAL, lon REAL, tz TEXT, lid TEXT,
        imported_by TEXT,
        times_imported INTEGER NOT NULL DEFAULT 1
    )
"""

# Each import of a row is counted, so that repeated work can be seen.
_UPSERT = f"""
    INSERT INTO airports ({", ".join(COLUMNS)}, imported_by)
    VALUES ({", ".join(":" + column for column in COLUMNS)}, :imported_by)
    ON CONFLICT (icao) DO UPDATE SET
        {", ".join(f"{column} = excluded.{column}" for column in COLUMNS[1:])},
        imported_by = excluded.imported_by,
        times_imported = times_imported + 1
"""

_REGION = "substr(tz, 1, instr(tz || '/', '/') - 1)"


def load() -> list[Airport]:
    """Return all rows of the source, in the order of their ICAO codes."""
    airports = airportsdata.load("ICAO")
    return [airports[code] for code in sorted(airports)]


def validate() -> int:
    """Return the number of rows in the source.

    Raises:
        ValueError: when a row is not a valid airport.
    """
    rows = load()
    for row in rows:
        if not (row["icao"] and row["name"] and abs(row["lat"]) <= 90 and abs(row["lon"]) <= 180):
            raise ValueError(f"not an airport: {row}")
    return len(rows)


def write_mail(expected: int, address: str) -> None:
    """Ask for an approval. In this example the mail is a file whose last line is the address."""
    settings.mail.write_text(
        f"{expected:,} airports are ready to be imported.\n"
        'To approve, post {"by": "your name"} to this address:\n'
        f"{address}\n"
    )


def upsert(rows: list[Airport], imported_by: str) -> None:
    """Insert or update rows in one transaction."""
    with connect() as db:
        db.executemany(_UPSERT, [{**row, "imported_by": imported_by} for row in rows])


def create_indexes() -> None:
    """Create indexes on the country and the IATA code."""
    with connect() as db:
        db.execute("CREATE INDEX IF NOT EXISTS airports_country ON airports (country)")
        db.execute("CREATE INDEX IF NOT EXISTS airports_iata ON airports (iata)")


def regions() -> list[str]:
    """Return the regions in the table: the first part of each timezone, such as ``Europe``."""
    with connect() as db:
        return [region for (region,) in db.execute(f"SELECT DISTINCT {_REGION} FROM airports ORDER BY 1")]


def count(region: str) -> int:
    """Return the number of airports of a region."""
    with connect() as db:
        number: int = db.execute(f"SELECT count(*) FROM airports WHERE {_REGION} = ?", (region,)).fetchone()[0]
    return number


def report(expected: int, approved_by: str, counts: dict[str, int]) -> dict[str, Any]:
    """Return the contents of the table."""
    with connect() as db:
        imported, countries = db.execute("SELECT count(*), count(DISTINCT country) FROM airports").fetchone()
        highest, feet = db.execute("SELECT name, max(elevation) FROM airports").fetchone()
    return {
        "expected": expected,
        "imported": imported,
        "approved_by": approved_by,
        "regions": counts,
        "countries": countries,
        "highest": f"{highest}, {feet:,.0f} ft",
    }


@contextmanager
def connect() -> Iterator[sqlite3.Connection]:
    """Open the database for one transaction, and create the table if it is missing."""
    with closing(sqlite3.connect(settings.database)) as db, db:
        db.execute(_TABLE)
        yield db
