#!/usr/bin/env python3
"""Writes the machine-readable copyright of the binary: walmgr's own and that of every crate compiled into it.

    packaging/copyright.py > target/package/copyright

Never guesses: a crate without a licence, and a licence without a text, end it with 1.
"""

import glob
import json
import os
import re
import subprocess
import sys

TARGET = "x86_64-unknown-linux-gnu"

# Texts that Debian installs (base-files).
COMMON = {"Apache-2.0": "Apache-2.0", "MPL-2.0": "MPL-2.0", "CC0-1.0": "CC0-1.0"}

# What tells the text of a licence, where one file holds several or its name says nothing.
MARKS = {
    "MIT": "Permission is hereby granted, free of charge, to any person obtaining a copy",
    "ISC": "Permission to use, copy, modify, and/or distribute this software for any",
    "BSD-3-Clause": "Redistribution and use in source and binary forms",
    "Unlicense": "This is free and unencumbered software released into the public domain",
    "Unicode-3.0": "UNICODE LICENSE V3",
    "Zlib": "This software is provided 'as-is', without any express or implied",
    "BSL-1.0": "Boost Software License - Version 1.0",
    "PostgreSQL": "Permission to use, copy, modify, and distribute this software and its",
}

# MIT-0 is the MIT licence without the duty to name its authors; no crate carries its text.
MIT_0 = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so.
THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def cargo(*arguments):
    return subprocess.run(["cargo", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def compiled_in():
    """The packages of the binary: what it depends on at run time on the target. Macros run in the compiler only."""
    metadata = json.loads(cargo("metadata", "--locked", "--format-version", "1"))
    tree = cargo("tree", "--locked", "--package", "walmgr", "--edges", "normal,no-proc-macro", "--target", TARGET,
                 "--prefix", "none", "--format", "{p}")
    wanted = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
    chosen = [package for package in metadata["packages"] if (package["name"], "v" + package["version"]) in wanted]
    return sorted(chosen, key=lambda package: (package["name"], package["version"]))


def licence_files(package):
    folder = os.path.dirname(package["manifest_path"])
    found = []
    for pattern in ("LICENSE*", "LICENCE*", "COPYING*", "COPYRIGHT*", "NOTICE*", "license*", "UNLICENSE*"):
        found += glob.glob(os.path.join(folder, pattern))
    texts = []
    for path in sorted(found):
        if os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                texts.append(file.read())
    return texts


def holders(package, texts):
    """The copyright lines of its licence files, else its authors."""
    lines = []
    for text in texts:
        for line in text.splitlines():
            line = line.strip(" \t*#/")
            if re.match(r"(?i)copyright (\(c\)|©|\d{4})", line) and "yyyy" not in line and line not in lines:
                lines.append(line)
    return lines[:20] or package["authors"] or ["the authors of " + package["name"]]


def in_debian_words(expression):
    """An SPDX expression as the copyright format spells it: a comma in place of brackets around each alternative."""
    expression = expression.replace("/", " OR ")
    expression = expression.replace("Apache-2.0 WITH LLVM-exception", "Apache-2.0-with-LLVM-exception")
    parts = []
    for part in re.split(r" AND (?![^()]*\))", expression):
        part = part.strip("()").replace(" OR ", " or ")
        if part not in parts:
            parts.append(part)
    return ", and ".join(parts) if any(" or " in part for part in parts) else " and ".join(parts)


def names_in(expression):
    return [name for name in re.split(r" or |,? and ", expression) if name]


def text_of(name, all_texts):
    if name == "Apache-2.0-with-LLVM-exception":
        return ("On Debian systems, the Apache License 2.0 is in /usr/share/common-licenses/Apache-2.0. The LLVM "
                "exception\npermits to embed compiled portions of the software without its sections 4(a), 4(b) and 4(d).")
    if name == "MIT-0":
        return MIT_0
    if name in COMMON:
        return f"On Debian systems, the text is in /usr/share/common-licenses/{COMMON[name]}."
    mark = MARKS.get(name)
    texts = [text for text in all_texts if mark and mark in " ".join(text.split())]
    if not texts:
        sys.exit(f"copyright.py: no crate has the text of {name}; add it to MARKS")
    # The shortest has this licence alone. Whose it is stands with each crate.
    lines = min(texts, key=len).splitlines()
    return "\n".join(line for line in lines if not re.match(r"(?i)\s*copyright (\(c\)|©|\d{4})", line))


def stanza(text):
    lines = (line.rstrip() for line in text.strip().splitlines())
    return "\n".join(" " + line if line else " ." for line in lines)


def main():
    packages = compiled_in()
    out = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        "Upstream-Name: walmgr\n"
        "Comment: the files of vendor are the crates that are compiled into /usr/bin/walmgr."
    ]
    all_texts, used, vendored = [], set(), []
    for package in packages:
        if not package["license"]:
            sys.exit(f"copyright.py: {package['name']} names no licence")
        texts = licence_files(package)
        all_texts += texts
        licence = in_debian_words(package["license"])
        used.update(names_in(licence))
        if package["source"] is None:
            continue
        copyrights = "\n ".join(holders(package, texts))
        vendored.append(f"Files: vendor/{package['name']}-{package['version']}/*\nCopyright: {copyrights}\nLicense: {licence}")
    with open("LICENSE", encoding="utf-8") as file:
        own = file.read()
    all_texts.append(own)
    own_holders = "\n ".join(holders({"authors": [], "name": "walmgr"}, [own]))
    out.append(f"Files: *\nCopyright: {own_holders}\nLicense: PostgreSQL")
    out += vendored
    for name in sorted(used):
        out.append(f"License: {name}\n{stanza(text_of(name, all_texts))}")
    print("\n\n".join(out))


main()
