"""gRPC client for TensorFlow Serving that does not need TensorFlow.

from tfs_client import Client

with Client("localhost:8500") as client:
print(client.classify("ankle-boot.png"))
"""

from tfs_client._client import Client
from tfs_client._errors import (
    DeadlineExceededError,
    InvalidImageError,
    InvalidRequestError,
    NotFoundError,
    ResourceExhaustedError,
    ServerError,
    TFSError,
    UnavailableError,
)
from tfs_client._images import Image
from tfs_client._results import Classification, Label, Signature, TensorSpec, VersionStatus

__all__ = [
    "Classification",
    "Client",
    "DeadlineExceededError",
    "Image",
    "InvalidImageError",
    "InvalidRequestError",
    "Label",
    "NotFoundError",
    "ResourceExhaustedError",
    "ServerError",
    "Signature",
    "TFSError",
    "TensorSpec",
    "UnavailableError",
    "VersionStatus",
]
