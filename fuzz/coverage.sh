#!/bin/sh
# Lists how much of its parser each target reaches:  fuzz/coverage.sh [TARGET...]
# Prints edges reached of edges linked, for the parser that the target's file names and for all of
# walmgr's own code. Runs the inputs of seeds/, corpus/ and target/made/ once each; builds nothing,
# run.sh does that. What is counted is explained in README.md.
set -eu
cd "$(dirname "$0")"
binaries=${WALMGR_FUZZ_BINARIES:-target/$(rustc -vV | sed -n 's/^host: //p')/release}
corpus=${WALMGR_FUZZ_CORPUS:-corpus}
root=${WALMGR_FUZZ_ROOT:-$(cd .. && pwd)}
if command -v llvm-symbolizer >/dev/null; then
    symbolize() {
        llvm-symbolizer --output-style=GNU --inlines --addresses --functions=linkage \
            --no-demangle -e "$1"
    }
elif command -v addr2line >/dev/null; then
    symbolize() { addr2line -f -i -a -e "$1"; }
else
    echo "SKIP: there is neither llvm-symbolizer nor addr2line"
    exit 0
fi
[ $# -gt 0 ] || set -- $(cd src/bin && grep -l '^//! Parser: ' -- *.rs | sed 's/\.rs$//')

printf '%-16s %9s %9s %6s   %9s %9s\n' target reached linked '' 'reached' 'linked'
for target in "$@"; do
    program=$binaries/$target
    [ -x "$program" ] || { echo "$target is not built"; continue; }
    parser=$(sed -n 's,^//! Parser: ,,p' "src/bin/$target.rs")
    set -- # the folders with inputs
    for folder in "seeds/$target" "$corpus/$target" "target/made/$target"; do
        [ ! -d "$folder" ] || set -- "$@" "$folder"
    done
    listing=target/edges.$target
    WALMGR_FUZZ_EDGES=1 "$program" "$@" >"$listing" 2>/dev/null
    # An edge belongs to the innermost line of walmgr's own code that it was compiled from: what
    # the standard library and other crates have inlined there counts for whoever called it.
    # `Debug` is left out: only a failed assertion prints with it.
    sed 's/ .*//; s/^/0x/' "$listing" | symbolize "$program" | awk \
        -v listing="$listing" -v root="$root/" -v target="$target" -v parser="$parser" '
        BEGIN {
            while ((getline line < listing) > 0) { split(line, part, " "); hit[++edges] = part[2] }
            count = split(parser, path, " ")
        }
        function count_edge() {
            if (owner == "" || debug) return
            all_linked++; all_reached += hit[edge]
            for (at = 1; at <= count; at++)
                if (index(owner, path[at]) == 1) { linked++; reached += hit[edge]; return }
        }
        /^0x[0-9a-f]+$/ { count_edge(); edge++; owner = ""; debug = 0; is_name = 1; next }
        is_name { if ($0 ~ /Debug(\$GT\$)?3fmt/) debug = 1; is_name = 0; next }
        {
            is_name = 1
            if (owner != "") next
            file = $1
            if (index(file, root) == 1) file = substr(file, length(root) + 1)
            sub(/^\.\.\//, "", file)
            if (file ~ /^(protocol\/)?src\// && file !~ /fuzzing/) owner = file
        }
        END {
            count_edge()
            printf "%-16s %9d %9d %5.0f%%   %9d %9d\n", target, reached, linked,
                linked ? 100 * reached / linked : 0, all_reached, all_linked
        }'
done
