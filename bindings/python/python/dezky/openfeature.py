"""A provider for OpenFeature that decides with dezky's flags.

Needs the package `openfeature-sdk`.
"""

from __future__ import annotations

import datetime
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dezky._dezky import AsyncLiveFlags, FlagEvent, FlagSet, LiveFlags, Subscription
from dezky.errors import Error

try:
    from openfeature.evaluation_context import EvaluationContext
    from openfeature.event import ProviderEventDetails
    from openfeature.exception import ErrorCode, ProviderFatalError, ProviderNotReadyError, TypeMismatchError
    from openfeature.flag_evaluation import FlagResolutionDetails, Reason
    from openfeature.provider import AbstractProvider, Metadata
except ModuleNotFoundError as _missing:  # pragma: no cover
    raise ModuleNotFoundError("dezky.openfeature needs openfeature-sdk: pip install openfeature-sdk") from _missing

if TYPE_CHECKING:
    from openfeature.flag_evaluation import FlagValueType

    _Resolved = tuple[bool | None, str | None, str | None, dict[str, bool | int | float | str], str | None, str | None]

__all__ = ["DezkyProvider"]


class DezkyProvider(AbstractProvider):
    """dezky's flags as a provider of OpenFeature.

    The targeting key is the tenant's id. The attributes `tenantSlug`, `plan`,
    `partnerSlug`, `environment` (str) and `tenantActive` (bool) are read, others are
    ignored. If the targeting key is missing or an attribute has another type, flags whose
    decision does not depend on it are still answered; the others are the errors
    `TARGETING_KEY_MISSING` and `INVALID_CONTEXT`. Every flag is a bool: other types are a
    `TYPE_MISMATCH`, and unknown flags `FLAG_NOT_FOUND`.

    From a store or a `FlagSet`, flags are decided in this process, without I/O. From a
    server, the first evaluation for a context asks it; use the async methods in event
    loops.

    Events: `READY` after the start and once the source is readable again,
    `CONFIGURATION_CHANGED` with the changed keys (of a store), `STALE` while the source
    can't be read, `ERROR` if that will not pass by itself, such as a rejected token. The
    last flags stay in use.

    Args:
        flags: The flags: a `FlagSet`, open `LiveFlags` or `AsyncLiveFlags`, which stay the
            caller's to close, or the URL of a store or server, which is opened when the
            SDK initializes the provider and closed when it shuts it down.
        token: The token for a server's URL.
        poll_interval: The time between two reads of the URL, in seconds or as a
            `timedelta`.
        timeout: The time for one read of the URL.
        file: The file that keeps a store's flags for a start without the store.

    Raises:
        TypeError: `flags` has another type.
        ValueError: Options are given for something else than a URL.

    Examples:
        >>> from dezky import FlagSet
        >>> from dezky.openfeature import DezkyProvider
        >>> from openfeature import api
        >>> from openfeature.evaluation_context import EvaluationContext
        >>> flags = FlagSet.from_json([{"key": "chat", "state": "on"}])
        >>> api.set_provider_and_wait(DezkyProvider(flags))
        >>> client = api.get_client()
        >>> client.get_boolean_value("chat", False, EvaluationContext("t-1"))
        True
        >>> api.shutdown()
    """

    def __init__(
        self,
        flags: FlagSet | LiveFlags | AsyncLiveFlags | str,
        *,
        token: str | None = None,
        poll_interval: float | datetime.timedelta | None = None,
        timeout: float | datetime.timedelta | None = None,
        file: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        options = {"token": token, "poll_interval": poll_interval, "timeout": timeout, "file": file}
        given = {name: value for name, value in options.items() if value is not None}
        if not isinstance(flags, (FlagSet, LiveFlags, AsyncLiveFlags, str)):
            raise TypeError(f"flags must be a FlagSet, LiveFlags, AsyncLiveFlags or a URL, not {type(flags).__name__}")
        if given and not isinstance(flags, str):
            raise ValueError(f"{next(iter(given))} has no effect without a URL: leave it out")
        self._url = flags if isinstance(flags, str) else None
        self._options: dict[str, Any] = given
        self._flags = None if isinstance(flags, str) else flags
        self._subscription: Subscription | None = None
        self._lock = threading.Lock()

    def get_metadata(self) -> Metadata:
        """Returns the provider's name, `dezky`."""
        return Metadata(name="dezky")

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        """Opens the URL and subscribes to changes. Called by the SDK.

        Raises:
            ProviderFatalError: The URL, an option or the token is wrong.
            ProviderNotReadyError: The source can't be read now.
        """
        with self._lock:
            if self._flags is None:
                assert self._url is not None
                try:
                    self._flags = LiveFlags.open(self._url, **self._options)
                except Error as error:
                    if error.retryable:
                        raise ProviderNotReadyError(str(error)) from error
                    raise ProviderFatalError(str(error)) from error
                except (TypeError, ValueError) as error:
                    raise ProviderFatalError(str(error)) from error
            if isinstance(self._flags, (LiveFlags, AsyncLiveFlags)) and self._subscription is None:
                # The subscription must not keep a provider alive that nobody uses.
                self._subscription = self._flags.subscribe(_Relay(self))

    def shutdown(self) -> None:
        """Ends the subscription and closes what `initialize` opened. Called by the SDK."""
        with self._lock:
            subscription, self._subscription = self._subscription, None
            if subscription is not None:
                subscription.cancel()
            if self._url is not None and isinstance(self._flags, LiveFlags):
                flags, self._flags = self._flags, None
                flags.close()

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        """Decides a flag.

        Raises:
            OpenFeatureError: The flag can't be decided; the class is that of the error's code.
            TypeError: The key or the context has another type.
            ValueError: The flags are closed.
        """
        key, attributes = _context(evaluation_context)
        return _details(self._ready()._resolve(flag_key, key, attributes))

    async def resolve_boolean_details_async(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        """Decides a flag; waits for a server without blocking the event loop.

        Raises:
            OpenFeatureError: The flag can't be decided; the class is that of the error's code.
            TypeError: The key or the context has another type.
            ValueError: The flags are closed.
        """
        key, attributes = _context(evaluation_context)
        flags = self._ready()
        if isinstance(flags, (LiveFlags, AsyncLiveFlags)):
            return _details(await flags._resolve_async(flag_key, key, attributes))
        return _details(flags._resolve(flag_key, key, attributes))

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        """Raises `TypeMismatchError`: every flag is a bool."""
        raise _mismatch(flag_key)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        """Raises `TypeMismatchError`: every flag is a bool."""
        raise _mismatch(flag_key)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        """Raises `TypeMismatchError`: every flag is a bool."""
        raise _mismatch(flag_key)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        """Raises `TypeMismatchError`: every flag is a bool."""
        raise _mismatch(flag_key)

    def _ready(self) -> FlagSet | LiveFlags | AsyncLiveFlags:
        flags = self._flags
        if flags is None:
            raise ProviderNotReadyError("the provider is not initialized: set it with openfeature.api.set_provider")
        return flags

    def _tell(self, event: FlagEvent) -> None:
        if event.kind == "changed":
            metadata: dict[str, bool | str | int | float] = {}
            if event.revision is not None:
                metadata["revision"] = event.revision
            self.emit_provider_configuration_changed(ProviderEventDetails(flags_changed=event.keys, metadata=metadata))
        elif event.kind == "stale":
            self.emit_provider_stale(ProviderEventDetails(message=event.message))
        elif event.kind == "error":
            self.emit_provider_error(ProviderEventDetails(message=event.message, error_code=ErrorCode.GENERAL))
        else:
            self.emit_provider_ready(ProviderEventDetails())


class _Relay:
    """Hands events to a provider as long as it is in use."""

    def __init__(self, provider: DezkyProvider) -> None:
        self._provider = weakref.ref(provider)

    def __call__(self, event: FlagEvent) -> None:
        provider = self._provider()
        if provider is not None:
            provider._tell(event)


def _context(context: EvaluationContext | None) -> tuple[str | None, Mapping[str, Any]]:
    if context is None:
        return None, {}
    if not isinstance(context, EvaluationContext):
        raise TypeError(f"evaluation_context must be an EvaluationContext or None, not {type(context).__name__}")
    return context.targeting_key, context.attributes


def _details(resolved: _Resolved) -> FlagResolutionDetails[bool]:
    value, variant, reason, metadata, code, message = resolved
    if code is not None:
        raise ErrorCode.to_exception(ErrorCode(code), message or "")
    assert value is not None
    # Other servers may give reasons that the SDK does not know.
    known = Reason(reason) if reason is not None and reason in Reason.__members__ else reason
    return FlagResolutionDetails(value=value, variant=variant, reason=known, flag_metadata=metadata)


def _mismatch(key: str) -> TypeMismatchError:
    if not isinstance(key, str):
        raise TypeError(f"flag_key must be a str, not {type(key).__name__}")
    return TypeMismatchError(f"{key} is a bool flag, as all flags are: ask for its boolean value")
