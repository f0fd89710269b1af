//! Databases whose encoding is not UTF-8: task text, topic and errors come through byte by byte.

use postgres::Client;

use crate::harness::{
    Server, create_role, enqueue_topic, run, scalar, task, wait_closed, wait_state,
};

/// Creates a database of this encoding with the extension, and connects to it.
fn database(server: &Server, name: &str, encoding: &str) -> Client {
    run(
        &mut server.superuser(),
        &format!("CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"),
    );
    let mut client = server.connect("postgres", name);
    run(
        &mut client,
        "CREATE EXTENSION pg_background_queue; CREATE TABLE effects (what text)",
    );
    client
}

/// The bytes of a text expression as the database holds them, in hexadecimal.
#[track_caller]
fn bytes(client: &mut Client, expression: &str, from: &str) -> String {
    scalar(
        client,
        &format!(
            "SELECT encode(convert_to({expression}, getdatabaseencoding()), 'hex') FROM {from}"
        ),
        &[],
    )
}

#[test]
fn a_latin1_database() {
    let server = Server::start_default();
    let mut client = database(&server, "latin", "LATIN1");

    let id = enqueue_topic(
        &mut client,
        "INSERT INTO effects VALUES ('caf\u{e9}')",
        "th\u{e9}",
    );
    let done = wait_state(&mut client, id, "finished");
    assert_eq!(done.topic.as_deref(), Some("th\u{e9}"));
    assert_eq!(bytes(&mut client, "what", "effects"), "636166e9");
    assert_eq!(bytes(&mut client, "topic", "pg_background_tasks"), "7468e9");

    // Errors hold the text, too.
    let id = enqueue_topic(&mut client, "SELECT \u{e9}t\u{e9}", "th\u{e9}");
    let done = wait_closed(&mut client, id);
    assert_eq!(done.state, "failed");
    assert!(
        done.errors()
            .contains("column \"\u{e9}t\u{e9}\" does not exist"),
        "{}",
        done.errors()
    );
}

#[test]
fn the_client_encoding_of_a_role_changes_nothing() {
    let server = Server::start_default();
    let mut client = database(&server, "latin", "LATIN1");
    create_role(&mut client, "alice");
    run(
        &mut client,
        "GRANT INSERT ON effects TO alice; ALTER ROLE alice SET client_encoding = 'UTF8'",
    );
    let mut alice = server.connect("alice", "latin");
    let id = enqueue_topic(
        &mut alice,
        "INSERT INTO effects VALUES ('caf\u{e9}')",
        "\u{fc}",
    );
    wait_state(&mut alice, id, "finished");
    let id = enqueue_topic(&mut alice, "SELECT \u{e9}t\u{e9}", "\u{fc}");
    let done = wait_closed(&mut alice, id);
    assert!(
        done.errors()
            .contains("column \"\u{e9}t\u{e9}\" does not exist"),
        "{}",
        done.errors()
    );
    // A task that changes it for itself.
    let id = enqueue_topic(
        &mut alice,
        "SET client_encoding = 'SQL_ASCII'; INSERT INTO effects VALUES ('\u{fc}'); SELECT \u{e9}t\u{e9}",
        "\u{fc}",
    );
    let done = wait_closed(&mut alice, id);
    assert!(
        done.errors()
            .contains("column \"\u{e9}t\u{e9}\" does not exist"),
        "{}",
        done.errors()
    );
    assert_eq!(bytes(&mut client, "what", "effects"), "636166e9");
}

#[test]
fn a_sql_ascii_database_with_odd_bytes() {
    let server = Server::start_default();
    let mut client = database(&server, "ascii", "SQL_ASCII");

    // INSERT INTO effects VALUES ('…') around bytes that are no UTF-8, and a topic of the same
    // kind.
    let odd = "convert_from('\\xfffe80c3', 'SQL_ASCII')";
    let id: i64 = scalar(
        &mut client,
        &format!(
            "SELECT pg_background_queue_enqueue('INSERT INTO effects VALUES (''' || {odd} || ''')', {odd})"
        ),
        &[],
    );
    wait_state(&mut client, id, "finished");
    assert_eq!(bytes(&mut client, "what", "effects"), "fffe80c3");
    assert_eq!(
        bytes(&mut client, "topic", "pg_background_tasks"),
        "fffe80c3"
    );

    // Errors with the odd bytes in message, detail, hint.
    let id: i64 = scalar(
        &mut client,
        &format!(
            "SELECT pg_background_queue_enqueue(replace('DO $$ BEGIN RAISE EXCEPTION ''m?'' \
             USING DETAIL = ''d?'', HINT = ''h?''; END $$', '?', {odd}))"
        ),
        &[],
    );
    let done = wait_closed(&mut client, id);
    assert_eq!(done.state, "failed");
    let errors = bytes(
        &mut client,
        "errors",
        &format!("pg_background_tasks WHERE id = {id}"),
    );
    for part in ["6dfffe80c3", "64fffe80c3", "68fffe80c3"] {
        assert!(errors.contains(part), "{part} is not in {errors}");
    }

    // A syntax error in the middle of them.
    let id: i64 = scalar(
        &mut client,
        &format!("SELECT pg_background_queue_enqueue('SELECT 1 FROM FROM ' || {odd})"),
        &[],
    );
    let done = wait_closed(&mut client, id);
    assert_eq!(done.state, "failed");
    assert!(done.errors().contains("42601"), "{}", done.errors());
}

#[test]
fn errors_are_cut_between_characters() {
    let server = Server::start_default();
    let mut client = server.superuser();
    // Whatever the bound is, one of these has the middle of a character there.
    for pad in ["", "x", "xx"] {
        let id = enqueue_topic(
            &mut client,
            &format!("DO $$ BEGIN RAISE EXCEPTION '{pad}%', repeat('\u{20ac}', 500000); END $$"),
            &"\u{20ac}".repeat(100),
        );
        let done = wait_closed(&mut client, id);
        assert_eq!(done.state, "failed");
        assert!(done.errors().contains("\u{20ac}\u{20ac}"));
        assert!(
            done.errors().len() < 100_000,
            "{} bytes",
            done.errors().len()
        );
        assert!(
            !done.errors().contains('\u{fffd}'),
            "a character was cut in two"
        );
        assert_eq!(task(&mut client, id).topic, Some("\u{20ac}".repeat(100)));
    }
}
