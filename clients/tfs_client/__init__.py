"""gRPC client for TensorFlow Serving that does not need TensorFlow.

from tfs_client import Client

with Client("localhost:8500") as client:
    print(client.classify("ankle-boot.png"))
"""

from tfs_client._aio import AsyncClient
from tfs_client._client import Client
from tfs_client._errors import (
    AccessDeniedError,
    CancelledError,
    DeadlineExceededError,
    InternalError,
    InvalidImageError,
    InvalidRequestError,
    NotFoundError,
    NotReadyError,
    ResourceExhaustedError,
    ServerError,
    TFSError,
    UnavailableError,
    UnsupportedError,
)
from tfs_client._images import Image
from tfs_client._options import (
    TLS,
    CallOptions,
    Hooks,
    RequestEvent,
    ResponseEvent,
    Retry,
    Timeout,
)
from tfs_client._results import (
    Classification,
    Label,
    Metadata,
    Prediction,
    Regression,
    Signature,
    TensorSpec,
    VersionStatus,
)

__all__ = [
    "TLS",
    "AccessDeniedError",
    "AsyncClient",
    "CallOptions",
    "CancelledError",
    "Classification",
    "Client",
    "DeadlineExceededError",
    "Hooks",
    "Image",
    "InternalError",
    "InvalidImageError",
    "InvalidRequestError",
    "Label",
    "Metadata",
    "NotFoundError",
    "NotReadyError",
    "Prediction",
    "Regression",
    "RequestEvent",
    "ResourceExhaustedError",
    "ResponseEvent",
    "Retry",
    "ServerError",
    "Signature",
    "TFSError",
    "TensorSpec",
    "Timeout",
    "UnavailableError",
    "UnsupportedError",
    "VersionStatus",
]
