"""What the services on a bus offer, written down: as AsyncAPI, as Markdown, and as a typed client.

    with Observer("redis://localhost", bus="prod") as observer:
        offered = describe(observer)
    print(markdown(offered))

`BusDescription` is made of the catalogues that the nodes publish, and of the types found in their tables. A client that
`client_module` wrote imports `ServiceClient` and `UNSET` from here.
"""

from dse.describe.asyncapi import asyncapi
from dse.describe.catalogue import BusDescription, MethodDescription, ServiceDescription, TableDescription, describe
from dse.describe.client import UNSET, ServiceClient
from dse.describe.clientmodule import client_module
from dse.describe.markdown import markdown
from dse.describe.signatures import Parameter, Signature

__all__ = [
    "UNSET",
    "BusDescription",
    "MethodDescription",
    "Parameter",
    "ServiceClient",
    "ServiceDescription",
    "Signature",
    "TableDescription",
    "asyncapi",
    "client_module",
    "describe",
    "markdown",
]
