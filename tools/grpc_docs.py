"""Writes docs/grpc.md from tools/grpc_docs.md, the errors, and the comments of the public protos: `make docs`.

protoc-gen-doc, which others use for this, is a Go program that no Python or npm package brings.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import descriptor_pb2 as pb
from google.rpc import code_pb2

from autoglm.common.errors import BY_REASON, MeshError
from autoglm.gateway.app import PUBLIC_SERVICES

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "protos"
INTRODUCTION = ROOT / "tools" / "grpc_docs.md"
Field = pb.FieldDescriptorProto
OFFICIAL = "https://protobuf.dev/reference/protobuf/google.protobuf/#"
# The numbers of fields in descriptor.proto, of which the paths in SourceCodeInfo consist.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
MEMBERS = 2


@dataclass(frozen=True, slots=True)
class Element:
    """A message, enum or service with the comments of its file, by their paths."""

    proto: pb.DescriptorProto | pb.EnumDescriptorProto | pb.ServiceDescriptorProto
    file: pb.FileDescriptorProto
    path: tuple[int, ...]

    def comment(self, member: int | None = None) -> str:
        """Return the element's comment, or that of its field, value or method number `member`."""
        path = self.path if member is None else (*self.path, MEMBERS, member)
        for location in self.file.source_code_info.location:
            if tuple(location.path) == path:
                paragraphs = re.split(r"\n\s*\n", location.leading_comments.strip())
                return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        return ""


def document() -> str:
    """Return the page."""
    elements = {f".{file.package}.{name}": element for file in _files() for name, element in _elements(file)}
    services = [elements[f".{name}"] for name in PUBLIC_SERVICES]
    used = _used(services, elements)
    parts = [INTRODUCTION.read_text(encoding="utf-8"), _errors()]
    parts += [_service(service) for service in services]
    parts += ["## Messages\n", *(_message(each) for each in used if isinstance(each.proto, pb.DescriptorProto))]
    parts += ["## Enums\n", *(_enum(each) for each in used if isinstance(each.proto, pb.EnumDescriptorProto))]
    return "\n".join(parts)


def _files() -> Iterable[pb.FileDescriptorProto]:
    with tempfile.NamedTemporaryFile() as file:
        sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("autoglm/v1/*.proto"))
        flags = [f"-I{PROTOS}", "--include_source_info", f"--descriptor_set_out={file.name}"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *flags, *sources], check=True, cwd=PROTOS)
        return pb.FileDescriptorSet.FromString(file.read()).file


def _elements(file: pb.FileDescriptorProto) -> Iterator[tuple[str, Element]]:
    kinds = ((MESSAGES, file.message_type), (ENUMS, file.enum_type), (SERVICES, file.service))
    for number, protos in kinds:
        for index, proto in enumerate(protos):
            yield proto.name, Element(proto, file, (number, index))


def _used(services: Iterable[Element], elements: Mapping[str, Element]) -> list[Element]:
    """Return the messages and enums that the services use, each after what uses it first."""
    waiting = [
        name for each in services for method in each.proto.method for name in (method.input_type, method.output_type)
    ]
    found = dict[str, Element]()
    while waiting:
        name = waiting.pop(0)
        if name in found or name not in elements:
            continue
        found[name] = element = elements[name]
        if isinstance(element.proto, pb.DescriptorProto):
            maps = {f"{name}.{each.name}": each for each in element.proto.nested_type}
            fields = [*element.proto.field, *(field for each in maps.values() for field in each.field)]
            waiting[:0] = [field.type_name for field in fields if field.type_name and field.type_name not in found]
    return list(found.values())


def _errors() -> str:
    rows = [(reason, code_pb2.Code.Name(kind.grpc_code), _first_line(kind)) for reason, kind in BY_REASON.items()]
    lines = [f"| `{reason}` | {code} | {when} |" for reason, code, when in rows]
    return "\n".join(["| Reason | Code | When |", "|---|---|---|", *lines]) + "\n"


def _first_line(kind: type[MeshError]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _service(service: Element) -> str:
    lines = [f"## {service.proto.name}\n", service.comment(), ""]
    for index, method in enumerate(service.proto.method):
        stream = "stream " if method.server_streaming else ""
        types = f"{_link(method.input_type)} → {stream}{_link(method.output_type)}"
        lines += [f"### {service.proto.name}.{method.name}\n", f"{types}\n", service.comment(index), ""]
    return "\n".join(lines)


def _message(message: Element) -> str:
    lines = [f"### {message.proto.name}\n", message.comment(), ""]
    if message.proto.field:
        lines += ["| Field | Type | What it is |", "|---|---|---|"]
    for index, field in enumerate(message.proto.field):
        lines.append(f"| `{field.name}` | {_type(field, message.proto)} | {_cell(message.comment(index))} |")
    return "\n".join([*lines, ""] if message.proto.field else lines)


def _enum(enum: Element) -> str:
    lines = [f"### {enum.proto.name}\n", enum.comment(), "", "| Value | Number | What it is |", "|---|---|---|"]
    for index, value in enumerate(enum.proto.value):
        lines.append(f"| `{value.name}` | {value.number} | {_cell(enum.comment(index))} |")
    return "\n".join([*lines, ""])


def _type(field: Field, message: pb.DescriptorProto) -> str:
    entries = {f".{each.name}": each for each in message.nested_type if each.options.map_entry}
    for suffix, entry in entries.items():
        if field.type_name.endswith(suffix):
            key, value = entry.field
            return f"map of {_scalar(key)} to {_scalar(value)}"
    if field.proto3_optional:
        return f"optional {_scalar(field)}"
    if field.HasField("oneof_index"):
        return f"{_scalar(field)}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return ("repeated " if field.label == Field.LABEL_REPEATED else "") + _scalar(field)


def _scalar(field: Field) -> str:
    return _link(field.type_name) if field.type_name else Field.Type.Name(field.type).removeprefix("TYPE_").lower()


def _link(name: str) -> str:
    short = name.rpartition(".")[2]
    if name.startswith(".google.protobuf."):
        return f"[google.protobuf.{short}]({OFFICIAL}{short.lower()})"
    return f"[{short}](#{short.lower()})"


def _cell(text: str) -> str:
    return text.replace("\n\n", " ").replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(document())
