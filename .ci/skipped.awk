# Reads `go test -v`: prints each package's line, all that a failed package said, and at the end which tests were skipped, and why.
# Those that -short skips are the end-to-end ones; they are not listed.
/^=== / { test = $3; next }
/^PASS$/ || /^ *--- PASS: / { next }
/^ok  \t/ || /^\?   \t/ { print; fflush(); said = ""; split("", why); next }
/^FAIL\t/ { printf "%s", said; print; fflush(); said = ""; split("", why); next }
/^ *--- SKIP: / { if (why[$3] !~ /without -short/) skipped[++n] = "  " $3 ": " why[$3]; next }
{ said = said $0 "\n"; why[test] = $0; sub(/^ +/, "", why[test]) }
END {
	printf "%s", said
	if (n > 0) print "\nskipped on this host:"
	for (i = 1; i <= n; i++) print skipped[i]
}
