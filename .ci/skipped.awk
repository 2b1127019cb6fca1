# Reads `go test -v`: prints each package's line, all that a failed package said, and at the end which tests were skipped, and why.
# Those that -short skips are the end-to-end ones; they are not listed.
/^=== / || /^PASS$/ { next }
/^ok  \t/ || /^\?   \t/ { print; fflush(); said = ""; next }
/^FAIL\t/ { printf "%s", said; print; fflush(); said = ""; next }
/^ *--- SKIP: / { if (last !~ /without -short/) skipped[++n] = sprintf("  %s: %s", $3, last) }
/^ *--- PASS: / { last = ""; next }
{ said = said $0 "\n"; last = $0; sub(/^ +/, "", last) }
END {
	printf "%s", said
	if (n > 0) print "\nskipped on this host:"
	for (i = 1; i <= n; i++) print skipped[i]
}
