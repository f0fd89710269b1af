# median.awk, plot.awk, RAW: an SVG of two parts. The rates of drain beside those of direct; the rate in the course of many tasks.
BEGIN { FS = "\t"; ours = "#336791" }

function text(x, y, what, how) { printf "<text x=\"%d\" y=\"%d\" %s>%s</text>\n", x, y, how, what }

$2 != "" {
    value[$1, ++count[$1]] = $2
    if ($1 ~ /^drain .* ours$/ && count[$1] == 1) { name = $1; sub(/^drain /, "", name); sub(/ ours$/, "", name); cases[++n] = name }
    if ($1 ~ /^curve/ && count[$1] == 1) { split($1, f, " "); line = f[2] " " f[3]; points[line, ++length_of[line]] = f[4] }
}

END {
    top = 60; height = 30 * n; left = 140; width = 310
    for (i = 1; i <= n; i++) for (k = 1; k <= 2; k++) {
        x = median("drain " cases[i] (k == 1 ? " ours" : " direct")); rate[i, k] = x
    }
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1000\" height=\"%d\" font-family=\"sans-serif\" font-size=\"12\">\n", top + height + 60
    print "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>"
    text(20, 25, "Drain rate, as a share of direct execution with as many clients", "font-weight=\"bold\"")
    text(20, 43, "task, synchronous_commit, workers; the number is ours in tasks/s", "fill=\"#555\"")
    # longer ones are cut at 2.5
    scale = width / 2.5
    for (i = 1; i <= n; i++) {
        y = top + 30 * (i - 1); share = rate[i, 2] > 0 ? rate[i, 1] / rate[i, 2] : 0
        long = scale * (share < 2.5 ? share : 2.5)
        text(left - 8, y + 17, cases[i], "text-anchor=\"end\"")
        printf "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"20\" fill=\"%s\"/>\n", left, y + 3, long, ours
        text(left + width + 12, y + 17, sprintf("%.2f (%d)", share, rate[i, 1]), "")
    }
    printf "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"black\" stroke-dasharray=\"3,3\"/>\n", left + scale, top, left + scale, top + height
    text(left + scale, top + height + 16, "direct = 1", "text-anchor=\"middle\"")

    left = 590; width = 370; height = height > 150 ? height : 150
    for (line in length_of) for (i = 1; i <= length_of[line]; i++) {
        x = median("curve " line " " points[line, i])
        if (x > high) high = x
        if (points[line, i] > far) far = points[line, i]
    }
    if (far) {
        text(left, 25, "Rate in the course of the tasks (tasks/s)", "font-weight=\"bold\"")
        text(left, 43, "dashed: an old snapshot is held open", "fill=\"#555\"")
        step = 5000; while (high / step > 6) step *= 2
        for (y = 0; y <= high; y += step) {
            printf "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", left, top + height * (1 - y / high), left + width, top + height * (1 - y / high)
            text(left - 5, top + height * (1 - y / high) + 4, y, "text-anchor=\"end\"")
        }
        for (line in length_of) {
            split(line, f, " ")
            printf "<polyline fill=\"none\" stroke-width=\"2\" stroke=\"%s\"%s points=\"", f[2] == 1 ? ours : "#d9822b", f[1] == "held" ? " stroke-dasharray=\"5,4\"" : ""
            for (i = 1; i <= length_of[line]; i++)
                printf "%.1f,%.1f ", left + width * points[line, i] / far, top + height * (1 - median("curve " line " " points[line, i]) / high)
            print "\"/>"
        }
        text(left + 230, 43, "1 worker", "fill=\"" ours "\"")
        text(left + 300, 43, "4 workers", "fill=\"#d9822b\"")
        text(left + width, top + height + 16, far " tasks", "text-anchor=\"end\"")
    }
    print "</svg>"
}
