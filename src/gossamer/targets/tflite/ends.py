"""Files that take and give codes: the ends of a written network, changed after the walk that wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gossamer.targets.target import end_codes
from gossamer.targets.tflite.draft import Draft, DraftOp, Written


def code_ends(written: Written, inputs_named: Sequence[str], io: str) -> Written:
    """The same network with "int8" or "uint8" codes instead of floats at its ends; the tensors there say what codes stand for.

    Each float input is coded right away and each output is decoded last: those operators go, or become a move by 128.
    """
    draft = Draft()
    draft.tensors, draft.ops = list(written.draft.tensors), list(written.draft.ops)
    inputs = [_input(draft, number, io) for number in written.inputs]
    outputs = [_output(draft, number, io) for number in written.outputs]
    names = dict(zip(inputs, inputs_named, strict=True))
    names |= {number: draft.tensors[number].name for number in written.note.values if number not in names}
    live, kept = draft.live([*inputs, *outputs], names)
    note = replace(written.note, values={kept[number]: order for number, order in written.note.values.items() if number in kept})
    return Written(live, tuple(kept[number] for number in inputs), tuple(kept[number] for number in outputs), note)


def _input(draft: Draft, number: int, io: str) -> int:
    tensor = draft.tensors[number]
    if tensor.dtype != "float32":
        return number
    coder = next(op for op in draft.ops if op.code == "QUANTIZE" and op.inputs == (number,))
    (coded,) = coder.outputs
    quantizer = draft.tensors[coded].quantizer
    assert quantizer is not None
    # Some operators read floats all the same, such as those that only ask for the batch size: they get what the codes stand for.
    real = draft.add(replace(tensor, name=f"{tensor.name}/real"))
    decoder = DraftOp("DEQUANTIZE", (coded,), (real,), "DequantizeOptions", {}, coder.module)
    others = (op for op in draft.ops if op is not coder)
    readers = [replace(op, inputs=tuple(real if source == number else source for source in op.inputs)) for op in others]
    draft.ops = [*(() if io == "int8" else (coder,)), decoder, *readers]
    if io == "int8":
        return coded
    draft.tensors[number] = replace(tensor, dtype=io, quantizer=end_codes(quantizer, io))
    return number


def _output(draft: Draft, number: int, io: str) -> int:
    decoder = next(op for op in draft.ops if number in op.outputs)
    (source,) = decoder.inputs
    quantizer = draft.tensors[source].quantizer
    assert decoder.code == "DEQUANTIZE" and quantizer is not None
    if io == "int8":
        return source  # others may read the numbers; where none does, the decoder reaches no output any more
    moved = draft.add(
        replace(draft.tensors[number], name=f"{draft.tensors[number].name}/{io}", dtype=io, quantizer=end_codes(quantizer, io))
    )
    draft.ops.append(DraftOp("QUANTIZE", (source,), (moved,), "QuantizeOptions", {}))
    return moved
