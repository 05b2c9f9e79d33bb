#!/usr/bin/env python3
"""Writes CHANGELOG.md as Debian's changelog, its versions spelled so that a pre-release sorts before its release.

    packaging/changelog.py MAINTAINER > target/package/changelog

Never invents a date: a section without one (Unreleased) is left out.
"""

import email.utils
import re
import sys
import textwrap
from datetime import datetime, timezone


def entry(version, date, items, maintainer):
    version = version.replace("-", "~", 1)
    wrapped = (textwrap.fill(item, 78, initial_indent="  * ", subsequent_indent="    ", break_long_words=False,
                             break_on_hyphens=False) for item in items)
    day = datetime.strptime(date, "%Y-%m-%d").replace(tzinfo=timezone.utc)
    return (f"walmgr ({version}-1) unstable; urgency=medium\n\n" + "\n".join(wrapped)
            + f"\n\n -- {maintainer}  {email.utils.format_datetime(day)}\n")


def main():
    with open("CHANGELOG.md", encoding="utf-8") as file:
        text = file.read()
    entries = []
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        head, body = section.split("\n", 1)
        found = re.fullmatch(r"\[(.+)\] - (\d{4}-\d{2}-\d{2})", head.strip())
        if not found:
            continue
        items = [" ".join(item.split()) for item in re.findall(r"^- (.*?)(?=^- |^#|\n\n|\Z)", body, flags=re.M | re.S)]
        entries.append(entry(*found.groups(), items, sys.argv[1]))
    if not entries:
        sys.exit("changelog.py: CHANGELOG.md has no section of a version with a date")
    print("\n".join(entries), end="")


main()
