//! What must not compile: a closure that owns something, under the guard (src/pg/plain.rs), and the use of a transaction or scope after
//! its end (src/pg/xact.rs). The snippets are compiled against the real code, with stand-ins for the server.

use std::path::Path;
use std::process::Command;

/// Compiles a snippet; what the compiler said if it refused. The refusal comes when the code is generated, so that
/// `--emit=metadata` would not do.
fn compile(snippet: &str) -> Result<(), String> {
    let out = tempfile::tempdir().expect("a temporary directory");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args([
            "--edition",
            "2024",
            "--crate-type",
            "lib",
            "--emit=obj",
            "-Adead_code",
        ])
        .arg("--out-dir")
        .arg(out.path())
        .arg(
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/compile_fail")
                .join(snippet),
        )
        .output()
        .expect("run rustc");
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[track_caller]
fn refused(snippet: &str, message: &str) {
    let said = compile(snippet).expect_err(snippet);
    assert!(
        said.contains(message),
        "{snippet} was refused for another reason:\n{said}"
    );
    // and for no other reason besides
    let errors = said
        .lines()
        .filter(|line| line.starts_with("error"))
        .count();
    assert_eq!(errors, 2, "the one error, and rustc's last line:\n{said}");
}

#[track_caller]
fn accepted(snippet: &str) {
    if let Err(said) = compile(snippet) {
        panic!("{said}");
    }
}

#[test]
fn plain_values_compile() {
    accepted("plain_values.rs");
}

#[test]
fn a_captured_string_is_refused() {
    refused(
        "captures_a_string.rs",
        "must not capture a value that needs Drop",
    );
}

#[test]
fn a_captured_box_is_refused_wherever_it_is() {
    refused(
        "captures_a_box_inside.rs",
        "must not capture a value that needs Drop",
    );
}

#[test]
fn a_returned_string_is_refused() {
    refused(
        "returns_a_string.rs",
        "must not return a value that needs Drop",
    );
}

#[test]
fn transactions_compile() {
    accepted("transactions.rs");
}

#[test]
fn a_transaction_ends_once() {
    refused(
        "commits_a_transaction_twice.rs",
        "use of moved value: `transaction`",
    );
    refused(
        "commits_what_was_dropped.rs",
        "use of moved value: `transaction`",
    );
}

#[test]
fn a_scope_ends_once() {
    refused("commits_a_scope_twice.rs", "use of moved value: `scope`");
}

#[test]
fn a_transaction_stays_in_its_thread() {
    refused(
        "sends_a_transaction.rs",
        "cannot be sent between threads safely",
    );
}
