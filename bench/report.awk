# median.awk, report.awk, wanted.tsv, RAW: a table of what is wanted and what was measured, in Markdown; with -v RAW_TABLE=1 the medians of all keys.
BEGIN { FS = "\t" }

# thousands are set apart, ratios have two digits
function number(x,    text, sign) {
    if (x != int(x) && x < 100 && x > -100) return sprintf("%.2f", x)
    sign = x < 0 ? "-" : ""; x = sprintf("%.0f", x < 0 ? -x : x)
    while (length(x) > 3) { text = "," substr(x, length(x) - 2) text; x = substr(x, 1, length(x) - 3) }
    return sign x text
}

FNR == NR { if ($0 !~ /^#/) rows[++n] = $0; next }
$2 != "" { if (!($1 in count)) keys[++m] = $1; value[$1, ++count[$1]] = $2 }

END {
    if (RAW_TABLE) {
        print "| key | median | least | most | times |\n| --- | ---: | ---: | ---: | ---: |"
        for (i = 1; i <= m; i++) {
            if (keys[i] ~ /^curve/) continue
            x = median(keys[i])
            printf "| %s | %s | %s | %s | %d |\n", keys[i], number(x), number(least), number(most), count[keys[i]]
        }
        exit
    }
    print "| | wanted | measured | reached |\n| --- | ---: | ---: | --- |"
    for (i = 1; i <= n; i++) {
        split(rows[i], f, "\t")
        if (!(f[2] in count) || f[3] != "" && !(f[4] in count)) continue
        x = median(f[2])
        if (f[3] == "-") x -= median(f[4])
        if (f[3] == "/") { x /= median(f[4]); shown = sprintf("%.2f", x) } else shown = number(x)
        if (f[5] == "") { wanted = ""; reached = "" }
        else {
            wanted = (f[5] == ">=" ? "≥ " : "≤ ") (f[3] == "/" ? sprintf("%.2f", f[6]) : number(f[6] + 0)) (f[7] == "" ? "" : " " f[7])
            reached = (f[5] == ">=" ? x >= f[6] : x <= f[6]) ? "yes" : "**no**"
        }
        printf "| %s | %s | %s | %s |\n", f[1], wanted, shown (f[7] == "" ? "" : " " f[7]), reached
    }
}
