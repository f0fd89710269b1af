//! docs/promises.md names a test for each promise: here is who looks whether there are such tests.

use std::fs;
use std::path::Path;

/// The names between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Why `name` names no test; `None` if it does. `module::test` is one of these tests, `src/file::test` a unit test, and
/// `regress/sql/x` or `regress/specs/x` a file.
fn complaint(root: &Path, name: &str) -> Option<String> {
    if name.starts_with("regress/") {
        let found = ["sql", "spec"]
            .iter()
            .any(|suffix| root.join(format!("{name}.{suffix}")).is_file());
        return (!found).then(|| format!("there is no {name}"));
    }
    let Some((module, test)) = name.split_once("::") else {
        return Some(format!("{name} is the name of no test"));
    };
    let file = if module.starts_with("src/") {
        format!("{module}.rs")
    } else {
        format!("tests/server/{module}.rs")
    };
    let Ok(text) = fs::read_to_string(root.join(&file)) else {
        return Some(format!("{name}: there is no {file}"));
    };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let begins = format!("fn {test}(");
    let found = lines
        .windows(2)
        .any(|two| two[0] == "#[test]" && two[1].starts_with(&begins));
    (!found).then(|| format!("{file} has no test {test}"))
}

#[test]
fn each_test_that_is_named_there_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/promises.md")).expect("docs/promises.md");
    let mut complaints = Vec::new();
    let mut rows = 0;
    let lines: Vec<&str> = text.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        let is_rule = |line: &str| line.starts_with("| ---");
        if is_rule(line) || lines.get(i + 1).is_some_and(|next| is_rule(next)) {
            continue;
        }
        let Some(row) = line
            .strip_prefix("| ")
            .and_then(|line| line.strip_suffix(" |"))
        else {
            continue;
        };
        let Some((promise, tests)) = row.rsplit_once(" | ") else {
            complaints.push(format!("not two columns: {line}"));
            continue;
        };
        rows += 1;
        let names: Vec<&str> = quoted(tests).collect();
        if names.is_empty() && !tests.starts_with("none: ") {
            complaints.push(format!("no test, and no reason why: {promise}"));
        }
        complaints.extend(names.iter().filter_map(|name| complaint(root, name)));
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
    assert!(rows > 100, "only {rows} promises were found");
}

#[test]
fn a_name_of_no_test_is_noticed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for good in [
        "promises::a_name_of_no_test_is_noticed",
        "src/core/outcome::delays_double_from_two_seconds",
        "src/core/outcome::delays_are_bounded_and_never_shrink",
        "regress/sql/rights",
        "regress/specs/commit",
    ] {
        assert_eq!(complaint(root, good), None);
    }
    for bad in [
        "promises::there_is_no_such_test",
        "promises::a_name_of_no_test",
        // a function, but no test
        "promises::complaint",
        "no_such_module::test",
        "src/core/outcome::delay_seconds",
        "regress/sql/no_such_file",
        "sentence",
    ] {
        assert!(complaint(root, bad).is_some(), "{bad}");
    }
}
