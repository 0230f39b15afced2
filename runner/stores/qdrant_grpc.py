"""Qdrant over gRPC: a channel of our own, points as wire bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from qdrant_client import grpc as qdrant
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.http import models

from runner.errors import (
    AuthError,
    CollectionMismatchError,
    CollectionNotFoundError,
    Id,
    PlanError,
    StoreError,
    TransientStoreError,
)
from runner.model import FloatArray, VectorKind
from runner.stores.address import Address
from runner.stores.grpc_channel import open_channel
from runner.stores.qdrant_address import (
    UNKNOWN_VERSION,
    FullError,
    RefusedError,
    ShardKey,
    UnknownCallError,
    Version,
    Want,
    active_keys,
    version_of,
)
from runner.stores.qdrant_points import Chosen, Columns
from runner.stores.qdrant_wire import Encoder, Rows, decode_rows, replies

__all__ = ["GrpcTransport"]

_RECEIVED_BYTES = 64 << 20
# Servers and proxies of other makes end at 4 MiB; a request has a few bytes more than its points.
_REQUEST_BYTES = (4 << 20) - (64 << 10)

# Older servers read the outer fields of `Vector` only.  The kinds came with 1.13; the outer
# fields are what clients wrote until 1.16, when they were deprecated.
_VECTORS_BY_KIND: Version = (1, 16)

_Code = grpc.StatusCode
_PASSING = {_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.ABORTED, _Code.CANCELLED}
_WRONG = {_Code.INVALID_ARGUMENT, _Code.OUT_OF_RANGE, _Code.FAILED_PRECONDITION}


class GrpcTransport:
    """One channel to one server.

    Args:
        address: The server.

    Raises:
        PlanError: The address cannot be reached by gRPC.
    """

    request_bytes = _REQUEST_BYTES

    def __init__(self, address: Address) -> None:
        if address.prefix and not address.connection.grpc_host:
            raise PlanError(
                f"{address.side}.url has a path, {address.prefix!r}, which gRPC does not have",
                "write `transport: rest`, or name the endpoint in connection.grpc_host",
            )
        self._address = address
        self._timeout_s = address.connection.timeout_s
        self._metadata = tuple((key.lower(), value) for key, value in address.headers.items())
        self._channel = open_channel(address, _RECEIVED_BYTES, ", or write `transport: rest`")
        self._encoders: dict[tuple[Chosen, ...], Encoder] = {}
        channel = self._channel
        self._collections = qdrant.CollectionsStub(channel)  # type: ignore[no-untyped-call]
        self._points = qdrant.PointsStub(channel)  # type: ignore[no-untyped-call]
        self._health = qdrant.QdrantStub(channel).HealthCheck  # type: ignore[no-untyped-call]
        self._version: Version | None = None
        self._upsert = channel.unary_unary(
            "/qdrant.Points/Upsert",
            request_serializer=_as_is,
            response_deserializer=qdrant.PointsOperationResponse.FromString,
        )
        self._scroll = channel.unary_unary(
            "/qdrant.Points/Scroll",
            request_serializer=qdrant.ScrollPoints.SerializeToString,
            response_deserializer=replies.scroll,
        )
        self._get = channel.unary_unary(
            "/qdrant.Points/Get",
            request_serializer=qdrant.GetPoints.SerializeToString,
            response_deserializer=replies.get,
        )

    def version(self) -> Version:
        """The server's; newer than all where it does not say."""
        if self._version is None:
            try:
                reply = self._call(self._health, qdrant.HealthCheckRequest())
                self._version = version_of(reply.version)
            except (UnknownCallError, ValueError):
                self._version = UNKNOWN_VERSION  # a proxy that passes on other calls only, say
        return self._version

    # Collections

    def info(self, collection: str) -> dict[str, Any] | None:
        """The collection's description, as REST has it."""
        request = qdrant.GetCollectionInfoRequest(collection_name=collection)
        try:
            reply = self._call(self._collections.Get, request)
        except CollectionNotFoundError:
            return None
        try:
            model = GrpcToRest.convert_collection_info(reply.result)
        except (ValueError, KeyError, NotImplementedError) as error:
            raise StoreError(
                f"qdrant {self._address.grpc}: the settings of {collection} are not understood: "
                f"{error}",
                "the server may be newer than the installed qdrant-client: upgrade that",
            ) from error
        found: dict[str, Any] = model.model_dump(mode="json", exclude_none=True)
        return found

    def create(self, collection: str, settings: Mapping[str, Any]) -> None:
        """Make a collection."""
        try:
            wanted = models.CreateCollection(**settings)
        except ValueError as error:  # pydantic's errors are such
            raise self._unsayable(f"settings of {collection}", error) from error
        request = qdrant.CreateCollection(
            collection_name=collection,
            shard_number=wanted.shard_number,
            replication_factor=wanted.replication_factor,
            write_consistency_factor=wanted.write_consistency_factor,
            on_disk_payload=wanted.on_disk_payload,
            metadata=RestToGrpc.convert_payload(wanted.metadata or {}),
        )
        if wanted.vectors is not None:
            request.vectors_config.CopyFrom(RestToGrpc.convert_vectors_config(wanted.vectors))
        if wanted.sparse_vectors:
            sparse = RestToGrpc.convert_sparse_vector_config(wanted.sparse_vectors)
            request.sparse_vectors_config.CopyFrom(sparse)
        if wanted.hnsw_config is not None:
            request.hnsw_config.CopyFrom(RestToGrpc.convert_hnsw_config_diff(wanted.hnsw_config))
        if wanted.optimizers_config is not None:
            optimizers = RestToGrpc.convert_optimizers_config_diff(wanted.optimizers_config)
            request.optimizers_config.CopyFrom(optimizers)
        if wanted.quantization_config is not None:
            quantization = RestToGrpc.convert_quantization_config(wanted.quantization_config)
            request.quantization_config.CopyFrom(quantization)
        if wanted.sharding_method is not None:
            method: Any = RestToGrpc.convert_sharding_method(wanted.sharding_method)
            request.sharding_method = method
        self._call(self._collections.Create, request)

    def _unsayable(self, what: str, error: ValueError) -> StoreError:
        return StoreError(
            f"qdrant {self._address.grpc}: {what} cannot be said by the installed "
            f"qdrant-client: {error}",
            "upgrade it, or write `transport: rest`",
        )

    def update(self, collection: str, settings: Mapping[str, Any]) -> None:
        """Change the optimizers' threshold and the collection's metadata."""
        request = qdrant.UpdateCollection(collection_name=collection)
        if "optimizers_config" in settings:
            request.optimizers_config.CopyFrom(
                qdrant.OptimizersConfigDiff(**settings["optimizers_config"])
            )
        for key, value in settings.get("metadata", {}).items():
            request.metadata[key].CopyFrom(_scalar(value))
        self._call(self._collections.Update, request)

    def drop(self, collection: str) -> None:
        """Remove a collection."""
        try:
            self._call(
                self._collections.Delete, qdrant.DeleteCollection(collection_name=collection)
            )
        except CollectionNotFoundError:
            return

    def index_field(self, collection: str, field: str, schema: Mapping[str, Any]) -> None:
        """Make a payload index."""
        kind = str(schema["type"]).capitalize()
        request = qdrant.CreateFieldIndexCollection(
            collection_name=collection, wait=True, field_name=field
        )
        try:
            request.field_type = qdrant.FieldType.Value(f"FieldType{kind}")
            if len(schema) > 1:
                params = getattr(models, f"{kind}IndexParams")(**schema)
                converted = RestToGrpc.convert_payload_schema_params(params)
                request.field_index_params.CopyFrom(converted)
        except ValueError as error:  # pydantic's and protobuf's errors are such
            raise self._unsayable(f"the payload index of {field!r}", error) from error
        self._applied(self._call(self._points.CreateFieldIndex, request))

    def aliases(self) -> dict[str, str]:
        """Every alias → the collection that it stands for."""
        reply = self._call(self._collections.ListAliases, qdrant.ListAliasesRequest())
        return {each.alias_name: each.collection_name for each in reply.aliases}

    def alias(self, *, remove: Sequence[str], add: Mapping[str, str]) -> None:
        """Remove aliases, then make others, as one act."""
        actions = [
            qdrant.AliasOperations(delete_alias=qdrant.DeleteAlias(alias_name=name))
            for name in remove
        ]
        for name, collection in add.items():
            new = qdrant.CreateAlias(collection_name=collection, alias_name=name)
            actions.append(qdrant.AliasOperations(create_alias=new))
        if actions:
            self._call(self._collections.UpdateAliases, qdrant.ChangeAliases(actions=actions))

    def shard_keys(self, collection: str) -> dict[ShardKey, bool]:
        """The keys of a collection with custom sharding → whether they take points already."""
        request = qdrant.CollectionClusterInfoRequest(collection_name=collection)
        reply = self._call(self._collections.CollectionClusterInfo, request)
        shards = [*reply.local_shards, *reply.remote_shards]
        return active_keys(
            (
                each.shard_id,
                _plain_shard_key(each.shard_key) if each.HasField("shard_key") else None,
                each.state == qdrant.ReplicaState.Active,
            )
            for each in shards
        )

    def add_shard_key(self, collection: str, shard: ShardKey) -> None:
        """Make a shard key."""
        wanted = qdrant.CreateShardKey(shard_key=_shard_key(shard))
        request = qdrant.CreateShardKeyRequest(collection_name=collection, request=wanted)
        self._call(self._collections.CreateShardKey, request)

    # Reading points

    def count(
        self, collection: str, *, has_vector: str | None = None, shard: ShardKey | None = None
    ) -> int:
        """Exact number of points, or of those that have this vector."""
        request = qdrant.CountPoints(
            collection_name=collection, exact=True, shard_key_selector=_selector(shard)
        )
        if has_vector is not None:
            condition = qdrant.HasVectorCondition(has_vector=has_vector)
            request.filter.must.append(qdrant.Condition(has_vector=condition))
        return int(self._call(self._points.Count, request).result.count)

    def scroll(
        self,
        collection: str,
        start: Id | None,
        limit: int,
        want: Want,
        shard: ShardKey | None = None,
    ) -> Rows:
        """The first *limit* points from id *start* on."""
        request = qdrant.ScrollPoints(
            collection_name=collection,
            offset=None if start is None else _point_id(start),
            limit=limit,
            with_payload=_with_payload(want),
            with_vectors=_with_vectors(want),
            shard_key_selector=_selector(shard),
        )
        return _rows(self._call(self._scroll, request).result, want)

    def retrieve(
        self, collection: str, ids: Sequence[Id], want: Want, shard: ShardKey | None = None
    ) -> Rows:
        """These points, in any order."""
        request = qdrant.GetPoints(
            collection_name=collection,
            ids=[_point_id(each) for each in ids],
            with_payload=_with_payload(want),
            with_vectors=_with_vectors(want),
            shard_key_selector=_selector(shard),
        )
        return _rows(self._call(self._get, request).result, want)

    def sample(self, collection: str, n: int, shard: ShardKey | None = None) -> list[Id]:
        """Ids of *n* random points."""
        request = qdrant.QueryPoints(
            collection_name=collection,
            query=qdrant.Query(sample=qdrant.Sample.Random),
            limit=n,
            with_payload=qdrant.WithPayloadSelector(enable=False),
            shard_key_selector=_selector(shard),
        )
        reply = self._call(self._points.Query, request)
        return [_id(each.id) for each in reply.result]

    # Writing points

    def encode(
        self,
        vectors: tuple[Chosen, ...],
        ids: Sequence[Id],
        columns: Columns,
        payloads: Sequence[Mapping[str, Any]],
    ) -> tuple[list[bytes], dict[int, str]]:
        """Each point as a frame of the request."""
        encoder = self._encoders.get(vectors)
        if encoder is None:
            by_kind = self.version() >= _VECTORS_BY_KIND
            encoder = self._encoders[vectors] = Encoder(vectors, by_kind=by_kind)
        return encoder.points(ids, columns, payloads)

    def upsert(
        self, collection: str, points: Sequence[bytes], shard: ShardKey | None = None
    ) -> None:
        """Write encoded points; on return they are applied."""
        fields = qdrant.UpsertPoints(
            collection_name=collection, wait=True, shard_key_selector=_selector(shard)
        )
        request = fields.SerializeToString() + b"".join(points)
        try:
            self._applied(self._call(self._upsert, request))
        except FullError as error:
            if len(request) > 4 << 20:
                raise RefusedError(error.what) from error
            raise

    def delete(self, collection: str, ids: Sequence[Id], shard: ShardKey | None = None) -> None:
        """Remove points; on return they are gone."""
        listed = qdrant.PointsIdsList(ids=[_point_id(each) for each in ids])
        request = qdrant.DeletePoints(
            collection_name=collection,
            wait=True,
            points=qdrant.PointsSelector(points=listed),
            shard_key_selector=_selector(shard),
        )
        self._applied(self._call(self._points.Delete, request))

    def _applied(self, reply: Any) -> None:
        status = reply.result.status
        if status != qdrant.UpdateStatus.Completed:
            raise TransientStoreError(
                f"qdrant {self._address.grpc}: a write was answered "
                f"{qdrant.UpdateStatus.Name(status)}; expected Completed"
            )

    # Searching

    def search(
        self,
        collection: str,
        queries: FloatArray,
        k: int,
        vector: Chosen,
        params: Mapping[str, Any],
        shard: ShardKey | None = None,
    ) -> list[list[tuple[Id, float]]]:
        """The *k* nearest points of each query with their scores, best first."""
        if self.version() < (1, 10):
            return self._searched(collection, queries, k, vector, params, shard)
        tokens = vector.spec.kind is VectorKind.MULTI
        searches = [
            qdrant.QueryPoints(
                collection_name=collection,
                query=qdrant.Query(nearest=_query(query, tokens=tokens)),
                using=vector.name or None,
                limit=k,
                params=qdrant.SearchParams(**params),
                with_payload=qdrant.WithPayloadSelector(enable=False),
                shard_key_selector=_selector(shard),
            )
            for query in queries.astype(np.float32).tolist()
        ]
        request = qdrant.QueryBatchPoints(collection_name=collection, query_points=searches)
        reply = self._call(self._points.QueryBatch, request)
        return [[(_id(hit.id), hit.score) for hit in each.result] for each in reply.result]

    def _searched(
        self,
        collection: str,
        queries: FloatArray,
        k: int,
        vector: Chosen,
        params: Mapping[str, Any],
        shard: ShardKey | None,
    ) -> list[list[tuple[Id, float]]]:
        """As `search`, by the call that servers had before 1.10."""
        searches = [
            qdrant.SearchPoints(
                collection_name=collection,
                vector=query,
                vector_name=vector.name or None,
                limit=k,
                params=qdrant.SearchParams(**params),
                with_payload=qdrant.WithPayloadSelector(enable=False),
                shard_key_selector=_selector(shard),
            )
            for query in queries.astype(np.float32).tolist()
        ]
        request = qdrant.SearchBatchPoints(collection_name=collection, search_points=searches)
        reply = self._call(self._points.SearchBatch, request)
        return [[(_id(hit.id), hit.score) for hit in each.result] for each in reply.result]

    def close(self) -> None:
        """End the channel."""
        self._channel.close()

    # Calls and their errors

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._error(error) from error

    def _error(self, error: Any) -> StoreError:
        code, details = error.code(), error.details() or ""
        what = f"qdrant {self._address.grpc}: {details or code.name}"
        if code in (_Code.UNAUTHENTICATED, _Code.PERMISSION_DENIED):
            return AuthError(what, f"check `{self._address.side}.api_key`")
        if code is _Code.NOT_FOUND:
            return CollectionNotFoundError(what)
        if code is _Code.ALREADY_EXISTS:
            return CollectionMismatchError(what)
        if code is _Code.RESOURCE_EXHAUSTED:
            wait_s = _retry_after(error)
            return FullError(what) if wait_s is None else TransientStoreError(what, "", wait_s)
        if code is _Code.UNIMPLEMENTED:
            return UnknownCallError(what)
        if code is _Code.UNAVAILABLE:
            untrusted = self._address.grpc_certificate_error()
            if untrusted is not None:
                return untrusted
        if code in _PASSING:
            hint = f"is a server listening there, with{'' if self._address.tls else 'out'} TLS?"
            return TransientStoreError(what, hint if code is _Code.UNAVAILABLE else "")
        if code in _WRONG:
            return RefusedError(what)
        return StoreError(f"{what} ({code.name})")


def _as_is(request: bytes) -> bytes:
    return request


def _retry_after(error: Any) -> float | None:
    for key, value in error.trailing_metadata() or ():
        if key == "retry-after":
            try:
                return float(value)
            except ValueError:
                return None
    return None


def _rows(points: Sequence[Any], want: Want) -> Rows:
    try:
        return decode_rows(points, want.vectors)
    except ValueError as error:
        raise StoreError(f"qdrant: {error}", "did the collection change meanwhile?") from error


def _point_id(record_id: Id) -> Any:
    if isinstance(record_id, int):
        return qdrant.PointId(num=record_id)
    return qdrant.PointId(uuid=record_id)


def _id(found: Any) -> Id:
    record_id: Id = found.uuid or found.num
    return record_id


def _with_payload(want: Want) -> Any:
    if isinstance(want.payload, bool):
        return qdrant.WithPayloadSelector(enable=want.payload)
    fields = qdrant.PayloadIncludeSelector(fields=want.payload)
    return qdrant.WithPayloadSelector(include=fields)


def _with_vectors(want: Want) -> Any:
    if want.every or not want.vectors:
        return qdrant.WithVectorsSelector(enable=bool(want.vectors))
    names = [each.name for each in want.vectors]
    return qdrant.WithVectorsSelector(include=qdrant.VectorsSelector(names=names))


def _query(query: list[float], *, tokens: bool) -> Any:
    dense = qdrant.DenseVector(data=query)
    if tokens:
        return qdrant.VectorInput(multi_dense=qdrant.MultiDenseVector(vectors=[dense]))
    return qdrant.VectorInput(dense=dense)


def _selector(shard: ShardKey | None) -> Any:
    return None if shard is None else qdrant.ShardKeySelector(shard_keys=[_shard_key(shard)])


def _shard_key(shard: ShardKey) -> Any:
    if isinstance(shard, int):
        return qdrant.ShardKey(number=shard)
    return qdrant.ShardKey(keyword=shard)


def _plain_shard_key(found: Any) -> ShardKey:
    shard: ShardKey = found.number if found.WhichOneof("key") == "number" else found.keyword
    return shard


def _scalar(value: str | int | None) -> Any:
    if value is None:
        return qdrant.Value(null_value=qdrant.NullValue.NULL_VALUE)
    if isinstance(value, int):
        return qdrant.Value(integer_value=value)
    return qdrant.Value(string_value=value)
