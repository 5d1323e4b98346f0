"""The mesh's responses as plain dataclasses. Times are in seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from autoglm.v1 import chat_pb2, embeddings_pb2, generation_pb2, model_pb2, transcript_pb2, transcription_pb2
from autoglm.v1.generation_pb2 import CacheOutcome, FinishReason
from autoglm.v1.modality_pb2 import Modality


@dataclass(frozen=True, slots=True)
class Token:
    """A token with its natural log probability and, if asked for, the most likely alternatives, best first."""

    text: str
    logprob: float
    token_bytes: bytes
    top: Sequence["Token"] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What a message of a stream adds. `logprobs` has an entry per token, if asked for."""

    text: str = ""
    reasoning: str = ""
    logprobs: Sequence[Token] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. Media tokens are included in the prompt, reasoning tokens in the completion."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    image_tokens: int
    audio_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class MediaStage:
    """An image or recording: where its embedding came from (`miss`, `local`, `redis`, `shared`), and the seconds."""

    modality: str
    cache: str
    encode: float


@dataclass(frozen=True, slots=True)
class Stages:
    """The seconds of each stage; `total` is the whole time in the gateway."""

    queue: float
    fetch: float
    media: Sequence[MediaStage]
    prefill: float
    decode: float
    total: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer.

    `finish_reason` is `stop` or `length`; `reasoning` is empty unless `return_reasoning` was set; `gates` has the mean
    openness of the cross-modal gate, in [0, 1], for each modality present; `model` is the bundle that answered.
    """

    text: str
    reasoning: str
    finish_reason: str
    logprobs: Sequence[Token]
    usage: Usage
    stages: Stages
    gates: Mapping[str, float]
    model: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A vector of length 1 for each text, image and recording, in this order; `prompt_tokens` counts all of them."""

    vectors: Sequence[Sequence[float]]
    prompt_tokens: int
    model: str
    request_id: str


@dataclass(frozen=True, slots=True)
class TranscriptWord:
    """A word, or a Chinese character, and when it is heard, in seconds from the start of the recording."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class TranscriptSegment:
    """A stretch of speech, in seconds from the start of the recording.

    `avg_logprob` is the mean natural log probability of its tokens, `no_speech_prob` the probability that nothing is
    said in it.
    """

    text: str
    start: float
    end: float
    words: Sequence[TranscriptWord]
    avg_logprob: float
    no_speech_prob: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in a recording, its length in seconds, and the segments that the text is joined from."""

    text: str
    duration: float
    segments: Sequence[TranscriptSegment]


@dataclass(frozen=True, slots=True)
class Model:
    """A model name for requests, its bundle, the modalities available now, and the context length in tokens."""

    id: str
    bundle: str
    modalities: Sequence[str]
    context_length: int


class Reader:
    """Collects a stream into its answer."""

    def __init__(self) -> None:
        self.begun = False
        self._pieces: list[Piece] = []
        self._last = chat_pb2.StreamCompleteResponse()

    def read(self, response: chat_pb2.StreamCompleteResponse) -> Piece | None:
        """Return what `response` adds, None if nothing."""
        self.begun, self._last = True, response
        delta = response.delta
        piece = Piece(delta.text, delta.reasoning, _tokens(delta.logprobs))
        if piece == Piece():
            return None
        self._pieces.append(piece)
        return piece

    @property
    def answer(self) -> Answer:
        """The whole answer; raises RuntimeError before the stream has ended."""
        if not self._last.HasField("summary"):
            raise RuntimeError("the answer is complete only after the stream has been read to its end")
        return _answer(
            text="".join(piece.text for piece in self._pieces),
            reasoning="".join(piece.reasoning for piece in self._pieces),
            logprobs=[token for piece in self._pieces for token in piece.logprobs],
            finish_reason=self._last.delta.finish_reason,
            response=self._last,
        )


def read_answer(response: chat_pb2.CompleteResponse) -> Answer:
    """Return the one choice of `response`."""
    (choice,) = response.choices
    return _answer(choice.text, choice.reasoning, _tokens(choice.logprobs), choice.finish_reason, response)


def read_embeddings(response: embeddings_pb2.EmbedResponse) -> Embeddings:
    """Return the vectors."""
    vectors = tuple(tuple(vector.values) for vector in response.vectors)
    return Embeddings(vectors, response.prompt_tokens, response.model, response.id)


def read_transcript(response: transcription_pb2.TranscribeResponse) -> Transcript:
    """Return a transcript."""
    return Transcript(response.text, _seconds(response.duration), [_segment(each) for each in response.segments])


def _segment(segment: transcript_pb2.TranscriptSegment) -> TranscriptSegment:
    words = [TranscriptWord(word.text, _seconds(word.start), _seconds(word.end)) for word in segment.words]
    return TranscriptSegment(
        segment.text,
        _seconds(segment.start),
        _seconds(segment.end),
        words,
        segment.avg_logprob,
        segment.no_speech_prob,
    )


def read_models(response: model_pb2.ListModelsResponse) -> list[Model]:
    """Return the models, the bundle's own name first."""
    return [
        Model(card.id, card.bundle, tuple(_word(Modality, each) for each in card.modalities), card.context_length)
        for card in response.models
    ]


def _answer(
    text: str,
    reasoning: str,
    logprobs: Sequence[Token],
    finish_reason: FinishReason.ValueType,
    response: chat_pb2.CompleteResponse | chat_pb2.StreamCompleteResponse,
) -> Answer:
    summary = response.summary
    return Answer(
        text=text,
        reasoning=reasoning,
        finish_reason=_word(FinishReason, finish_reason),
        logprobs=logprobs,
        usage=Usage(**{name: getattr(summary.usage, name) for name in Usage.__dataclass_fields__}),
        stages=_stages(summary.stages),
        gates={_word(Modality, gate.modality): gate.mean for gate in summary.gates},
        model=response.model,
        request_id=response.id,
    )


def _stages(stages: generation_pb2.Stages) -> Stages:
    media = [
        MediaStage(_word(Modality, each.modality), _word(CacheOutcome, each.cache), _seconds(each.encode))
        for each in stages.media
    ]
    times = {name: _seconds(getattr(stages, name)) for name in ("queue", "fetch", "prefill", "decode", "total")}
    return Stages(media=media, **times)


def _tokens(entries: Sequence[generation_pb2.LogprobEntry]) -> Sequence[Token]:
    return tuple(_token(entry.chosen, tuple(_token(each) for each in entry.top)) for entry in entries)


def _token(token: generation_pb2.TokenLogprob, top: Sequence[Token] = ()) -> Token:
    return Token(token.token, token.logprob, token.token_bytes, top)


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9


def _word(kind: "type[Modality | FinishReason | CacheOutcome]", value: int) -> str:
    """Return the short name of an enum value: FINISH_REASON_STOP is `stop`. An unknown value stays a number."""
    found = kind.DESCRIPTOR.values_by_number.get(value)
    if found is None:
        return str(value)
    # The values of an enum share a prefix, which the unspecified one shows.
    prefix = kind.DESCRIPTOR.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(found.name).removeprefix(prefix).lower()
