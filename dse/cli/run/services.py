"""The services of a run file: their plugins found, their options checked against the constructors' annotations."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dse.cli.run.convert import Context, convert_fields
from dse.cli.run.kinds import Field
from dse.cli.run.lines import Key
from dse.cli.run.problems import BAD, known_names
from dse.core.info import identifier
from dse.core.service import DataService
from dse.errors import ConfigError, MissingExtra
from dse.services.plugins import installed_services, load_service

__all__ = ["ServiceSpec", "check_services", "plugin_options"]


@dataclass(frozen=True)
class ServiceSpec:
    """One service of a run file. fingerprint: equal for equal plugins and options."""

    service_id: str
    plugin: str
    fingerprint: str = field(repr=False)
    cls: type[DataService] = field(repr=False, compare=False)
    options: Mapping[str, Any] = field(repr=False, compare=False)

    def make(self) -> DataService:
        """Return a new service; nothing that it is given is shared with another one."""
        return self.cls(self.service_id, **copy.deepcopy(dict(self.options)))


def check_services(services: Mapping[str, Any], key: Key, context: Context) -> dict[str, ServiceSpec]:
    """Return the services that are as they should be; what is wrong with the others is a problem of the context."""
    specs = {}
    for service_id, table in services.items():
        spec = _check_service(service_id, table, (*key, service_id), context)
        if spec is not None:
            specs[service_id] = spec
    return specs


def _check_service(service_id: str, table: Any, key: Key, context: Context) -> ServiceSpec | None:
    problems = context.problems
    before = len(problems)
    try:
        identifier("service_id", service_id)
    except ConfigError as error:
        problems.add(key, str(error))
    if not isinstance(table, dict):
        problems.add(key, "must be a table with a key 'plugin'")
        return None
    cls = _load(table.get("plugin"), key, context)
    if cls is None:
        return None
    plugin: str = table["plugin"]
    try:
        fields, others = plugin_options(cls)
    except ConfigError as error:
        problems.add((*key, "plugin"), f"the plugin {plugin!r} cannot be run from a file: {error}")
        return None
    given = {name: value for name, value in table.items() if name != "plugin"}
    try:
        options = convert_fields(given, fields, key, context, what=f"option of {plugin!r}", others=others)
    except Exception as error:  # an annotation that says something unheard of, or cannot be resolved
        problems.add((*key, "plugin"), f"the annotations of the plugin {plugin!r} cannot be read: {error}")
        return None
    if any(value is BAD for value in options.values()) or len(problems) > before:
        return None
    spec = ServiceSpec(service_id, plugin, _fingerprint(table), cls, options)
    try:
        spec.make()
    except ConfigError as error:
        problems.add((*key, *_in_document(error.key, table)), str(error))
    except MissingExtra as error:
        problems.add((*key, "plugin"), str(error))
    except (Exception, SystemExit) as error:  # a plugin is anybody's code
        problems.add(key, f"the plugin {plugin!r} refuses its options: {type(error).__name__}: {error}")
    return spec if len(problems) == before else None


def _load(plugin: Any, key: Key, context: Context) -> type[DataService] | None:
    if plugin is BAD:
        return None
    if plugin is None:
        context.problems.add(
            (*key, "plugin"), f"is missing; it is the name of a plugin, one of {', '.join(installed_services())}"
        )
    elif not isinstance(plugin, str):
        context.problems.add((*key, "plugin"), "must be a string, the name of a plugin")
    elif plugin not in (installed := installed_services()):
        written = context.written.get((*key, "plugin"), plugin)
        context.problems.add((*key, "plugin"), f"no plugin {written!r} is installed; {known_names(plugin, installed)}")
    else:
        try:
            return load_service(plugin)
        except (ConfigError, MissingExtra) as error:
            context.problems.add((*key, "plugin"), str(error))
    return None


def plugin_options(cls: type[DataService]) -> tuple[list[Field], Any]:
    """Return the options of a plugin, and the annotation of any others that it takes (None if it takes none).

    They are the parameters of its constructor after ``service_id``. Raises `ConfigError` for a constructor that cannot
    be called with options by name.
    """
    try:
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        hints = typing.get_type_hints(cls.__init__, include_extras=True)
    except Exception as error:
        raise ConfigError(f"the annotations of {cls.__name__}.__init__ cannot be read: {error}") from error
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in (*positional, inspect.Parameter.VAR_POSITIONAL):
        raise ConfigError(f"the first parameter of {cls.__name__}.__init__ must be service_id")
    fields: list[Field] = []
    others: Any = None
    for each in parameters[0 if parameters[0].kind is inspect.Parameter.VAR_POSITIONAL else 1 :]:
        kind = hints.get(each.name, Any)
        required = each.default is inspect.Parameter.empty
        if each.kind is inspect.Parameter.VAR_KEYWORD:
            others = kind
        elif each.kind is inspect.Parameter.POSITIONAL_ONLY or each.name == "plugin":
            if required:
                raise ConfigError(f"the parameter {each.name!r} of {cls.__name__}.__init__ cannot be given by name")
        elif each.kind is not inspect.Parameter.VAR_POSITIONAL:
            fields.append(Field(each.name, each.name, kind, required, None if required else each.default))
    return fields, others


def _in_document(key: tuple[str, ...], table: Any) -> Key:
    """Return a key as the document has it: the plugin may have written an index as text."""
    found: Key = ()
    for part in map(str, key):
        if isinstance(table, list) and part.isdigit() and int(part) < len(table):
            found, table = (*found, int(part)), table[int(part)]
        else:
            found, table = (*found, part), table.get(part) if isinstance(table, dict) else None
    return found


def _fingerprint(table: Mapping[str, Any]) -> str:
    # A digest: options may hold a secret, and this is kept to be compared only.
    text = json.dumps(table, sort_keys=True, default=lambda value: [type(value).__name__, str(value)])
    return hashlib.sha256(text.encode()).hexdigest()
