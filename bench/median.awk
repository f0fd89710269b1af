# median.awk: what report.awk and plot.awk share. value[key, 1 .. count[key]] are the measurements.

# Sets least and most, too.
function median(key,    i, j, v, c, x) {
    c = count[key]
    for (i = 1; i <= c; i++) v[i] = value[key, i]
    for (i = 2; i <= c; i++) {
        x = v[i]
        for (j = i - 1; j >= 1 && v[j] > x; j--) v[j + 1] = v[j]
        v[j + 1] = x
    }
    least = v[1]; most = v[c]
    return c % 2 ? v[(c + 1) / 2] : (v[c / 2] + v[c / 2 + 1]) / 2
}
