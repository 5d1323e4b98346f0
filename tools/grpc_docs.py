"""Writes docs/grpc.md from tools/grpc_docs.md, the errors, and the comments of the public protos: `make docs`.

protoc-gen-doc, which others use for this, is a Go program that no Python or npm package brings.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
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


class Contract:
    """The services, messages and enums of all protos by their full names, and the comments of what they consist of."""

    def __init__(self, files: Iterable[pb.FileDescriptorProto]) -> None:
        self.services = dict[str, pb.ServiceDescriptorProto]()
        self.messages = dict[str, pb.DescriptorProto]()
        self.enums = dict[str, pb.EnumDescriptorProto]()
        self._comments = dict[tuple[str, tuple[int, ...]], str]()
        for file in files:
            self._add(file)

    def comment(self, name: str, *member: int) -> str:
        """Return the comment of an element, or of one of its fields, values or methods by its position."""
        return self._comments.get((name, member), "")

    def used(self) -> list[str]:
        """Return the messages and enums that the public services use, each after what uses it first."""
        methods = [method for name in PUBLIC_SERVICES for method in self.services[f".{name}"].method]
        waiting = [name for method in methods for name in (method.input_type, method.output_type)]
        found = dict[str, None]()
        while waiting:
            name = waiting.pop(0)
            if name not in found and (name in self.messages or name in self.enums):
                found[name] = None
                waiting[:0] = self._types(name)
        return list(found)

    def _types(self, name: str) -> list[str]:
        message = self.messages.get(name, pb.DescriptorProto())
        entries = [field for entry in message.nested_type for field in entry.field]
        return [field.type_name for field in (*message.field, *entries) if field.type_name]

    def _add(self, file: pb.FileDescriptorProto) -> None:
        names = dict[tuple[int, ...], str]()
        for index, message in enumerate(file.message_type):
            names[MESSAGES, index] = f".{file.package}.{message.name}"
            self.messages[names[MESSAGES, index]] = message
        for index, enum in enumerate(file.enum_type):
            names[ENUMS, index] = f".{file.package}.{enum.name}"
            self.enums[names[ENUMS, index]] = enum
        for index, service in enumerate(file.service):
            names[SERVICES, index] = f".{file.package}.{service.name}"
            self.services[names[SERVICES, index]] = service
        for location in file.source_code_info.location:
            element, rest = tuple(location.path[:2]), tuple(location.path[2:])
            if element in names and (not rest or (rest[0] == MEMBERS and len(rest) == 2)):
                self._comments[names[element], rest[1:]] = _paragraphs(location.leading_comments)


def document() -> str:
    """Return the page."""
    contract = Contract(_files())
    used = contract.used()
    parts = [INTRODUCTION.read_text(encoding="utf-8"), _errors()]
    parts += [_service(contract, f".{name}") for name in PUBLIC_SERVICES]
    parts += ["## Messages\n", *(_message(contract, name) for name in used if name in contract.messages)]
    parts += ["## Enums\n", *(_enum(contract, name) for name in used if name in contract.enums)]
    return "\n".join(parts)


def _files() -> Iterable[pb.FileDescriptorProto]:
    with tempfile.NamedTemporaryFile() as file:
        sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("autoglm/v1/*.proto"))
        flags = [f"-I{PROTOS}", "--include_source_info", f"--descriptor_set_out={file.name}"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *flags, *sources], check=True, cwd=PROTOS)
        return pb.FileDescriptorSet.FromString(file.read()).file


def _paragraphs(comment: str) -> str:
    return "\n\n".join(" ".join(each.split()) for each in re.split(r"\n\s*\n", comment.strip()))


def _errors() -> str:
    rows = [(reason, code_pb2.Code.Name(kind.grpc_code), _first_line(kind)) for reason, kind in BY_REASON.items()]
    lines = [f"| `{reason}` | {code} | {when} |" for reason, code, when in rows]
    return "\n".join(["| Reason | Code | When |", "|---|---|---|", *lines]) + "\n"


def _first_line(kind: type[MeshError]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _service(contract: Contract, name: str) -> str:
    service = contract.services[name]
    lines = [f"## {service.name}\n", contract.comment(name), ""]
    for index, method in enumerate(service.method):
        stream = "stream " if method.server_streaming else ""
        types = f"{_link(method.input_type)} → {stream}{_link(method.output_type)}"
        lines += [f"### {service.name}.{method.name}\n", f"{types}\n", contract.comment(name, index), ""]
    return "\n".join(lines)


def _message(contract: Contract, name: str) -> str:
    message = contract.messages[name]
    lines = [f"### {message.name}\n", contract.comment(name), ""]
    if message.field:
        lines += ["| Field | Type | What it is |", "|---|---|---|"]
    for index, field in enumerate(message.field):
        lines.append(f"| `{field.name}` | {_type(field, message)} | {_cell(contract.comment(name, index))} |")
    return "\n".join([*lines, ""] if message.field else lines)


def _enum(contract: Contract, name: str) -> str:
    enum = contract.enums[name]
    lines = [f"### {enum.name}\n", contract.comment(name), "", "| Value | Number | What it is |", "|---|---|---|"]
    for index, value in enumerate(enum.value):
        lines.append(f"| `{value.name}` | {value.number} | {_cell(contract.comment(name, index))} |")
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
