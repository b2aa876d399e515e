# SPDX-License-Identifier: Apache-2.0
"""Doxygen's input filter: makes documentation of the plain comments of our headers.

A comment at the start of a line that ends right above a declaration documents it: its first paragraph as prose, the rest,
which is laid out by hand, verbatim. A comment behind a member or a constant documents that. A comment that begins with a
rule of dashes opens a section.
"""

import re
import sys

INSIDE = r"(?:(?!\*/).)*?"
SECTION = re.compile(rf"^/\* -+ (\w[^\n]*?)( \*/|\n{INSIDE}\*/)\n", re.S | re.M)
BLOCK = re.compile(rf"^[ ]*/\* (?!-)({INSIDE}) ?\*/[ ]*\n(?=[ ]*[^\s/#}}])", re.S | re.M)
LINES = re.compile(r"((?:^[ ]*// (?!SPDX).*\n(?:[ ]*//.*\n)*))(?=[ ]*[^\s/#}])", re.M)
TRAILING = re.compile(rf"(?<=[;,\w(] )[ ]*/\* ({INSIDE}) \*/[ ]*$", re.M)


def escape(text):
    return re.sub(r"([\\@&$#<>%\"])", r"\\\1", text)


def unstarred(text):
    return "\n".join(re.sub(r"^ *\* ?", "", line) for line in text.split("\n")).strip()


def documentation(text):
    head, _, tail = text.partition("\n\n")
    verbatim = f"\n@verbatim\n{tail}\n@endverbatim" if tail.strip() else ""
    return f"/** {escape(head)}{verbatim} */\n"


def slashes(match):
    return documentation("\n".join(re.sub(r"^ *// ?", "", line) for line in match[1].strip("\n").split("\n")))


def sections(text):
    opened = False

    def open_section(match):
        nonlocal opened
        close, opened = ("/** @} */\n" if opened else ""), True
        body = escape(unstarred(match[2].removesuffix("*/")))
        return f"{close}/** @name {match[1]}\n{body} */\n/** @{{ */\n"

    text = SECTION.sub(open_section, text)
    return text.replace("#ifdef __cplusplus\n}", "/** @} */\n#ifdef __cplusplus\n}") if opened else text


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        text = file.read()
    text = re.sub(r"^typedef struct (\w+) \{(.*?)^\} \1;", r"struct \1 {\2};", text, flags=re.S | re.M)
    # Doxygen would list the members of an inline namespace in it and in the one around it.
    text = re.sub(r"^(inline namespace \w+ \{|\}  // namespace INT8Q_HPP_CONFIGURATION)$", "", text, flags=re.M)
    text = TRAILING.sub(lambda m: f"/**< {escape(m[1])} */", text)
    text = sections(text)
    text = BLOCK.sub(lambda m: documentation(unstarred(m[1])), text)
    sys.stdout.write(LINES.sub(slashes, text))


main()
