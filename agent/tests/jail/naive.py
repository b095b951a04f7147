"""A collector of outputs as one writes it without thinking of an enemy, one way of doing it a name.

It does what the agent must not: opens by path, follows links, waits for whatever is there, reads until
the end, splits lists of names at their ends of line.
"""
import os
import sys

how, top = sys.argv[1:]
if how == "walk":
    # Every file below, links followed, all of each read.
    files = 0
    for dir, _, names in os.walk(top, followlinks=True):
        for name in names:
            with open(os.path.join(dir, name), "rb") as file:
                while piece := file.read(1 << 20):
                    if files < 20:
                        sys.stdout.write(piece[:64].decode(errors="replace"))
            files += 1
    print(f"\n{files} files")
elif how == "file":
    print(open(top, "rb").read().decode())
elif how == "lines":
    for path in os.popen(f"find {top} -type f").read().splitlines():
        if os.path.isfile(path):
            print(open(path, "rb").read().decode())
elif how == "list":
    print(len(os.listdir(top)), "entries")
