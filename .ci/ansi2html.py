"""Turns a terminal screen with its colours (tmux capture-pane -e) on stdin into a page on stdout, for 'make screenshots'."""
import html
import re
import sys

BASE = ["#1d1f21", "#cc6666", "#b5bd68", "#f0c674", "#81a2be", "#b294bb", "#8abeb7", "#c5c8c6",
        "#7f8487", "#e07b7b", "#c9d37a", "#ffd98a", "#9cc0e0", "#cfa8d8", "#a5d8d0", "#ffffff"]


def colour(n):
    if n < 16:
        return BASE[n]
    if n < 232:
        n -= 16
        return "#" + "".join("%02x" % (0 if v == 0 else 55 + 40 * v) for v in (n // 36, n // 6 % 6, n % 6))
    return "#" + "%02x" % (8 + 10 * (n - 232)) * 3


def apply(state, params):
    i = 0
    while i < len(params):
        p = params[i]
        if p == 0:
            state.clear()
        elif p in (1, 2, 3, 4, 7):
            state[p] = True
        elif p in (22, 23, 24, 27):
            for q in {22: (1, 2), 23: (3,), 24: (4,), 27: (7,)}[p]:
                state.pop(q, None)
        elif 30 <= p <= 37 or 90 <= p <= 97:
            state["fg"] = BASE[p - 30 if p < 90 else p - 82]
        elif 40 <= p <= 47 or 100 <= p <= 107:
            state["bg"] = BASE[p - 40 if p < 100 else p - 92]
        elif p == 39:
            state.pop("fg", None)
        elif p == 49:
            state.pop("bg", None)
        elif p in (38, 48):
            key = "fg" if p == 38 else "bg"
            if params[i + 1] == 5:
                state[key] = colour(params[i + 2])
                i += 2
            else:
                state[key] = "#%02x%02x%02x" % tuple(params[i + 2:i + 5])
                i += 4
        i += 1


def style(s):
    fg, bg = s.get("fg", "#d8dadc"), s.get("bg")
    if s.get(7):
        fg, bg = bg or "#16181a", s.get("fg", "#d8dadc")
    out = "color:%s;" % fg
    out += "background:%s;" % bg if bg else ""
    out += "font-weight:bold;" if s.get(1) else ""
    out += "opacity:.65;" if s.get(2) else ""
    out += "text-decoration:underline;" if s.get(4) else ""
    return out


def main():
    state, out = {}, []
    for part in re.split(r"(\x1b\[[0-9;:]*m)", sys.stdin.read().rstrip("\n")):
        m = re.fullmatch(r"\x1b\[([0-9;:]*)m", part)
        if m:
            apply(state, [int(p or 0) for p in re.split("[;:]", m.group(1))])
        elif part:
            out.append('<span style="%s">%s</span>' % (style(state), html.escape(part)))
    print('<!doctype html><meta charset="utf-8"><body style="margin:0;background:#16181a">'
          '<pre style="margin:14px;font:15px/1.25 \'DejaVu Sans Mono\',monospace">' + "".join(out) + "</pre>")


main()
