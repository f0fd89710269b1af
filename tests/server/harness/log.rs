//! What must never stand in the log of a server that ran our tests.

/// Parts of WARNINGs by which PostgreSQL says that somebody forgot to give something back.
const LEAKS: &[&str] = &[
    "leak",
    "still referenced",
    "still active",
    "was not closed",
    "left non-empty SPI stack",
    "problem in alloc set",
    "detected write past chunk end",
    "you don't own a lock",
];

/// What sanitizers say: see scripts/asan.
const SANITIZERS: &[&str] = &["ERROR: AddressSanitizer", ": runtime error: "];

/// The first line of `log` that must fail a test, if there is one. `crash_expected`: the test
/// itself kills server processes, so that lines about signals say nothing. `full_disk_expected`: it
/// fills the disk of the WAL, for which PostgreSQL has no other answer than a PANIC.
pub fn complaint(log: &str, crash_expected: bool, full_disk_expected: bool) -> Option<&str> {
    let is_excused = |line: &str| full_disk_expected && line.contains("No space left on device");
    log.lines().find(|line| {
        line.contains("TRAP:")
            || SANITIZERS.iter().any(|words| line.contains(words))
            || (line.contains("PANIC:") && !is_excused(line))
            || (line.contains("WARNING:") && LEAKS.iter().any(|leak| line.contains(leak)))
            || (!crash_expected && line.contains("terminated by signal"))
    })
}

/// The last `count` lines of `log`.
pub fn tail(log: &str, count: usize) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::complaint;

    #[test]
    fn a_quiet_log_is_no_complaint() {
        let log = "LOG:  database system is ready\nERROR:  memory leak in the user's own words\n\
                   WARNING:  there is no transaction in progress\n";
        assert_eq!(complaint(log, false, false), None);
    }

    #[test]
    fn traps_panics_leaks_and_signals_are_complaints() {
        for line in [
            "TRAP: failed Assert(\"x\"), File: \"y.c\"",
            "[7] PANIC:  stuck spinlock",
            "[7] WARNING:  relcache reference leak: relation \"x\" not closed",
            "[7] WARNING:  resource was not closed: relation \"x\"",
            "==7==ERROR: AddressSanitizer: stack-buffer-overflow on address 0x7",
            "src/shim/row.c:7:1: runtime error: signed integer overflow",
            "[7] LOG:  background worker \"w\" (PID 7) was terminated by signal 11: Segmentation fault",
        ] {
            assert_eq!(complaint(line, false, false), Some(line));
        }
    }

    #[test]
    fn an_expected_full_disk_excuses_its_own_panic_only() {
        let line = "[7] PANIC:  could not write to file \"x\": No space left on device";
        assert_eq!(complaint(line, true, false), Some(line));
        assert_eq!(complaint(line, true, true), None);
        assert!(complaint("[7] PANIC:  stuck spinlock", true, true).is_some());
    }

    #[test]
    fn an_expected_crash_excuses_signals_only() {
        let line = "[7] LOG:  server process (PID 7) was terminated by signal 9: Killed";
        assert_eq!(complaint(line, true, false), None);
        assert!(complaint("TRAP: failed Assert", true, true).is_some());
    }
}
