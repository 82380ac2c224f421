"""Make the manual pages and shell completions of both programs.

    python3 image-build/manual.py DIRECTORY

DIRECTORY gets man8/byteor-firstboot.8, man8/byteor-agent.8 and man5/byteor-firstboot.yaml.5; bash/
and zsh/ get one file for each program. The commands and options come from the table in
`firstboot.cli`, the page about the settings from .github/reference/settings.md. The date is
$SOURCE_DATE_EPOCH. Completions need shtab (Debian: python3-shtab). A package is built with this;
nothing of it is needed on a host.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP))

from firstboot import __version__  # noqa: E402
from firstboot.cli import EXIT_CODES, PROGRAMS, parser  # noqa: E402

WIDTH = 76
SETTINGS = TOP / ".github/reference/settings.md"
PURPOSES = {
    "byteor-firstboot": "first boot of a ByteOr Cloud host",
    "byteor-agent": "agent of an enrolled ByteOr Cloud host",
    "byteor-firstboot.yaml": "settings of byteor-firstboot",
}
SEE_ALSO = {
    "byteor-firstboot": "byteor-agent(8), byteor-firstboot.yaml(5), systemd-creds(1)",
    "byteor-agent": "byteor-firstboot(8), byteor-firstboot.yaml(5)",
    "byteor-firstboot.yaml": "byteor-firstboot(8), byteor-agent(8)",
}


# -- roff


def escape(text: str) -> str:
    """Return `text` so that roff prints it as it stands; a line may begin with any character."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("·", "\\(bu")
    text = text.replace("…", "...").replace("–", "\\(en")
    return "\n".join("\\&" + line if line[:1] in (".", "'") else line for line in text.split("\n"))


def fill(lines: list[str]) -> str:
    """Return the page with long lines broken, but for requests, tags and what is not filled."""
    out, is_filled, is_tag = list[str](), True, False
    for line in lines:
        if line in (".nf", ".fi"):
            is_filled = line == ".fi"
        if line.startswith(".") or is_tag or not is_filled:
            out.append(line)
        else:
            broken = textwrap.wrap(line, WIDTH, break_long_words=False, break_on_hyphens=False)
            out += [f"\\&{one}" if one[0] in ".'" else one for one in broken]
        is_tag = line == ".TP"
    return "\n".join(out) + "\n"


def head(name: str, section: int) -> list[str]:
    date = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", "0"))))
    title = f'.TH {name.upper()} {section} {date} "byteor-firstboot {__version__}" ByteOr'
    return [title, ".SH NAME", f"{escape(name)} \\- {escape(PURPOSES[name])}"]


def paragraphs(text: str) -> list[str]:
    """Return paragraphs, an example or a list of exit codes with its own line ends."""
    lines = []
    for part in text.strip().split("\n\n"):
        is_set = part.startswith(("example", "exit codes"))
        lines += [".PP", ".nf", escape(part), ".fi"] if is_set else [".PP", escape(part)]
    return lines


# -- the programs


def synopsis(prog: str, below: argparse.ArgumentParser) -> str:
    """Return a command with its arguments and options, but for those that all have."""
    words = [f"\\fB{escape(prog)}\\fR"]
    for action in own(below):
        name = "\\fB" + escape(action.option_strings[-1]) + "\\fR" if action.option_strings else ""
        words.append(escape_argument(action, name))
    return " ".join(words)


def escape_argument(action: argparse.Action, name: str) -> str:
    value = ""
    if action.nargs != 0:
        shown = (
            action.metavar if isinstance(action.metavar, str) else "|".join(action.choices or ())
        )
        value = f"\\fI{escape(shown or action.dest)}\\fR"
        value = f"[{value}]" if action.nargs == "?" else value
    said = f"{name} {value}".strip()
    return f"[{said}]" if action.option_strings and not action.required else said


COMMON = ("-h", "--root", "--config", "-v")


def own(below: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return what a command itself takes."""
    return [
        action
        for action in below._actions
        if action.help != argparse.SUPPRESS and not set(COMMON) & set(action.option_strings)
    ]


def option(action: argparse.Action) -> list[str]:
    names = ", ".join(f"\\fB{escape(name)}\\fR" for name in action.option_strings)
    tag = escape_argument(action, names)
    if action.option_strings and tag.startswith("["):
        tag = tag[1:-1]
    return [".TP", tag, escape(action.help or "")]


def program_page(name: str) -> list[str]:
    """Return a page of section 8: each command with its options."""
    program, top = PROGRAMS[name], parser(name, whole=True)
    commands = next(one for one in top._actions if isinstance(one, argparse._SubParsersAction))
    lines = head(name, 8)
    lines += [".SH SYNOPSIS", f"\\fB{escape(name)}\\fR [\\fIOPTION\\fR...] \\fICOMMAND\\fR ..."]
    lines += [".SH DESCRIPTION", escape(program.purpose)]
    lines += paragraphs("A secret is never an argument: a token is read from a file or from stdin.")
    lines += [".SH COMMANDS"]
    for command in program.commands:
        below = commands.choices[command.word]
        lines += [f".SS {escape(command.word)}", synopsis(f"{name} {command.word}", below)]
        lines += paragraphs(f"{command.help[0].upper()}{command.help[1:]}.")
        if below.description and below.description != command.help:
            lines += paragraphs(below.description)
        for action in own(below):
            if action.help:  # the synopsis says the others
                lines += option(action)
    lines += [".SH OPTIONS", "Every command takes these, before its name or after it."]
    for action in top._actions:
        if action.option_strings:
            lines += option(action)
    lines += [".SH EXIT STATUS", ".nf", escape(EXIT_CODES.partition("\n")[0].partition(": ")[2])]
    lines += [escape(line.strip()) for line in EXIT_CODES.splitlines()[1:]] + [".fi"]
    lines += [".SH EXAMPLES", ".nf", escape(program.example), ".fi"]
    return [*lines, ".SH SEE ALSO", escape(SEE_ALSO[name])]


# -- the settings, from the reference page


def inline(text: str) -> str:
    """Return a line of Markdown as roff: code and strong words bold, links as their text."""
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
    pieces = re.split(r"`([^`]+)`|\*\*(.+?)\*\*", text)
    out = []
    for at, piece in enumerate(pieces):
        if piece:
            out.append(f"\\fB{escape(piece)}\\fR" if at % 3 else escape(piece))
    joined = "".join(out)
    return "\\&" + joined if joined[:1] in (".", "'") else joined


def cells(row: str) -> list[str]:
    row = re.sub(r"; \[\w+\]\(\w+\.md\)", "", row)  # to a page that is not a manual page
    return [inline(cell.strip()) for cell in row.strip().strip("|").split("|")]


def table(rows: list[str]) -> list[str]:
    """Return a table as a list: the first cell, or the first two, is what the rest is about."""
    names, lines = cells(rows[0]), list[str]()
    for row in rows[2:]:
        found = cells(row)
        rest = [f"{name}: {cell}" if name == "Default" else cell
                for name, cell in zip(names[1:], found[1:]) if cell]  # fmt: skip
        lines += [".TP", found[0], ". ".join(rest)]
    return lines


def settings_page() -> list[str]:
    """Return the page of section 5."""
    lines = head("byteor-firstboot.yaml", 5)
    lines += [".SH SYNOPSIS", "\\fI/etc/byteor/firstboot.yaml\\fR", ".SH DESCRIPTION"]
    text = SETTINGS.read_text().partition("\n")[2]
    for block in re.split(r"\n\n+", text.strip()):
        rows = block.splitlines()
        if block.startswith("## "):
            lines.append(f".SH {escape(rows[0][3:].upper())}")
        elif block.startswith("|"):
            lines += table(rows)
        elif block.startswith("- "):
            for item in re.split(r"\n(?=- )", block):
                lines += [".IP \\(bu 2", inline(" ".join(item[2:].split()))]
        else:
            separate = [] if lines[-1].startswith(".SH") else [".PP"]
            lines += [*separate, inline(" ".join(rows))]
    return [*lines, ".SH SEE ALSO", escape(SEE_ALSO["byteor-firstboot.yaml"])]


# -- completion


def completion(name: str, shell: str) -> str:
    """Return the completion of one program, by shtab; files and directories where they belong."""
    import shtab

    top = parser(name, whole=True)
    below = next(one for one in top._actions if isinstance(one, argparse._SubParsersAction))
    for each in (top, *below.choices.values()):
        for action in each._actions:
            shown = action.metavar if isinstance(action.metavar, str) else ""
            if re.search("FILE|PATH", shown):
                action.complete = shtab.FILE
            elif shown == "DIR":
                action.complete = shtab.DIRECTORY
    return str(shtab.complete(top, shell=shell))


def main() -> None:
    out = Path(sys.argv[1])
    pages = {f"man8/{name}.8": program_page(name) for name in PROGRAMS}
    pages["man5/byteor-firstboot.yaml.5"] = settings_page()
    texts = {path: fill(lines) for path, lines in pages.items()}
    for name in PROGRAMS:
        texts[f"bash/{name}"] = completion(name, "bash")
        texts[f"zsh/_{name}"] = completion(name, "zsh")
    for path, text in texts.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text(text)


if __name__ == "__main__":
    main()
