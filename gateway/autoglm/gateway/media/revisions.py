"""The embeddings of one request, all of one revision for each modality.

While an encoder is replaced by one with other weights, replicas of both answer, and the cache may still have what the
old ones made. In one prompt, or in one list of vectors, the tokens of one would mean nothing beside those of the other.
"""

from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from autoglm.common.errors import RETRY_SECONDS, ModalityUnavailable
from autoglm.common.modalities import BY_NUMBER
from autoglm.gateway.media.verify import VerifiedMedia
from autoglm.gateway.tasks import together
from autoglm.v1.embedding_pb2 import Embedding
from autoglm.v1.generation_pb2 import MediaStage
from autoglm.v1.modality_pb2 import Modality

ROUNDS = 20  # with half of the replicas replaced, each leaves about half of what differed

Made = tuple[Embedding, MediaStage]
# Takes a medium and the revision that it is to have, if that matters; what it makes may have another one.
Embed = Callable[[VerifiedMedia, str | None], Coroutine[Any, Any, Made]]


async def of_one_revision(media: Sequence[VerifiedMedia], embed: Embed) -> Sequence[Made]:
    """Embed all of `media` at once, and again those that do not have the revision of the others of their modality.

    Raises what `embed` raises, and ModalityUnavailable when an encoder's replicas go on to differ.
    """
    made: list[dict[str, Made]] = [{} for _ in media]  # by revision
    wanted: dict[Modality.ValueType, str] = {}
    for _ in range(ROUNDS):
        lacking = [number for number, item in enumerate(media) if wanted.get(item.modality) not in made[number]]
        if not lacking:
            return [each[wanted[item.modality]] for item, each in zip(media, made, strict=True)]
        now = await together([embed(media[number], wanted.get(media[number].modality)) for number in lacking])
        for number, result in zip(lacking, now, strict=True):
            made[number][result[0].encoder_revision] = result
        # What comes now says which revisions still run: one that is gone is not wanted for long.
        for modality in {media[number].modality for number in lacking}:
            wanted[modality] = _most_common(embedding for embedding, _ in now if embedding.modality == modality)
    application = BY_NUMBER[media[lacking[0]].modality].application
    raise ModalityUnavailable(f"the {application} service is being replaced; try again soon", retry_after=RETRY_SECONDS)


def _most_common(embeddings: Iterable[Embedding]) -> str:
    return Counter(embedding.encoder_revision for embedding in embeddings).most_common(1)[0][0]
