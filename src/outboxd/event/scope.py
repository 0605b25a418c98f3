"""Which services an event's scope is correlated to, by Komodor's rules.

Within one field of the scope the values are OR-ed, between fields they are
AND-ed, and no scope at all means every service of the account. Pure, but for
reading an inventory; it never asks a cluster what runs there.

An inventory is a TOML file. Where every namespace of every cluster runs the
same services, three lists say so:

    clusters = ["A", "B"]
    namespaces = ["C", "D"]
    services = ["1", "2", "3", "4", "5"]

Else a table for each cluster lists the services of each of its namespaces:

    [clusters.production]
    shop = ["checkout", "cart"]
    billing = ["invoices"]
"""

from __future__ import annotations

from outboxd.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

INVENTORY_BYTES_MAX = 16 << 20
SERVICES_MAX = 100_000


class Service:
    """One service of the account; equal to another with the same three names."""

    __slots__ = ("cluster", "namespace", "service")

    def __init__(self, cluster: str, namespace: str, service: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.service = service

    def as_json(self) -> dict[str, str]:
        return {"cluster": self.cluster, "namespace": self.namespace, "service": self.service}

    def _key(self) -> tuple[str, str, str]:
        return self.cluster, self.namespace, self.service

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Service) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Service({self.cluster!r}, {self.namespace!r}, {self.service!r})"

    def __str__(self) -> str:
        return f"{self.cluster}/{self.namespace}/{self.service}"


class Inventory:
    """All services of an account, each once, in the order in which they were named."""

    __slots__ = ("services",)

    def __init__(self, services: Iterable[Service]) -> None:
        self.services = list(dict.fromkeys(services))

    @classmethod
    def grid(
        cls, clusters: Sequence[str], namespaces: Sequence[str], services: Sequence[str]
    ) -> Inventory:
        """Every service in every namespace of every cluster."""
        return cls(
            Service(cluster, namespace, service)
            for cluster in clusters
            for namespace in namespaces
            for service in services
        )

    @classmethod
    def example(cls) -> Inventory:
        """The 20 services of Komodor's documentation."""
        return cls.grid(("A", "B"), ("C", "D"), ("1", "2", "3", "4", "5"))

    @classmethod
    def load(cls, path: str | None) -> Inventory:
        """The inventory of a TOML file, or the documentation's where there is none."""
        return cls.example() if path is None else _read(path)

    @property
    def clusters(self) -> list[str]:
        return list(dict.fromkeys(service.cluster for service in self.services))

    @property
    def namespaces(self) -> list[str]:
        return list(dict.fromkeys(service.namespace for service in self.services))

    @property
    def names(self) -> list[str]:
        """The services' own names."""
        return list(dict.fromkeys(service.service for service in self.services))


def correlated(scope: Mapping[str, Sequence[str]], inventory: Inventory) -> list[Service]:
    """The services that an event with this scope reaches; an empty list counts as not given."""
    clusters = frozenset(scope.get("clusters") or ())
    namespaces = frozenset(scope.get("namespaces") or ())
    services = frozenset(scope.get("servicesNames") or ())
    return [
        service
        for service in inventory.services
        if (not clusters or service.cluster in clusters)
        and (not namespaces or service.namespace in namespaces)
        and (not services or service.service in services)
    ]


def parse_inventory(text: str, path: str) -> Inventory:
    """The inventory that a TOML text describes; ConfigError says what is wrong with it."""
    import tomllib

    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}", _HINT) from None
    for name in tables:
        if name not in ("clusters", "namespaces", "services"):
            raise ConfigError(f'{path}: unknown key "{name[:60]}"', _HINT)
    clusters = tables.get("clusters")
    if isinstance(clusters, dict):
        if len(tables) > 1:
            raise ConfigError(f"{path}: both lists and tables of clusters", _HINT)
        return _from_tables(clusters, path)
    lists = [
        _names(tables.get(name), name, path) for name in ("clusters", "namespaces", "services")
    ]
    if len(lists[0]) * len(lists[1]) * len(lists[2]) > SERVICES_MAX:
        raise _too_many(path)
    return Inventory.grid(*lists)


_HINT = (
    "an inventory has three lists: clusters, namespaces, services; "
    'or tables such as [clusters.production] with shop = ["checkout"]'
)


def _from_tables(clusters: Mapping[str, object], path: str) -> Inventory:
    services = []
    for cluster, namespaces in clusters.items():
        if not cluster or not isinstance(namespaces, dict):
            raise ConfigError(f'{path}: the cluster "{cluster[:60]}" is no table', _HINT)
        for namespace, value in namespaces.items():
            names = _names(value, f"clusters.{cluster[:60]}.{namespace[:60]}", path)
            services += [Service(cluster, namespace, name) for name in names]
            if len(services) > SERVICES_MAX:
                raise _too_many(path)
    return Inventory(services)


def _names(value: object, label: str, path: str) -> list[str]:
    if isinstance(value, list) and value and all(type(name) is str and name for name in value):
        return value
    what = "is missing" if value is None else "is not a list of names"
    raise ConfigError(f"{path}: {label} {what}", _HINT)


def _too_many(path: str) -> ConfigError:
    return ConfigError(f"{path}: more than {SERVICES_MAX} services", "name fewer")


def _read(path: str) -> Inventory:
    try:
        with open(path, "rb") as file:
            data = file.read(INVENTORY_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", _HINT) from None
    if len(data) > INVENTORY_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {INVENTORY_BYTES_MAX} bytes", _HINT)
    try:
        return parse_inventory(data.decode(), path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at offset {error.start}", _HINT) from None
