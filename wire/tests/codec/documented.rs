//! docs/WIRE.md is the specification; it may not drift from the code.

use crate::v2_golden::{REQUESTS, replies};
use wire::limits;
use wire::refuse::Code;

const WIRE: &str = include_str!("../../../docs/WIRE.md");

#[test]
fn every_vector_is_an_example() {
    let requests = REQUESTS.iter().map(|(_, text)| *text);
    for text in requests.chain(replies().iter().map(|(_, text)| *text)) {
        assert!(WIRE.contains(text), "docs/WIRE.md lacks the example {text}");
    }
}

/// A row of the table of codes: number, name, permanent or not.
fn code_row(line: &str) -> Option<(u16, &str, bool)> {
    let mut cells = line.split('|').map(str::trim).skip(1);
    let number = cells.next()?.parse().ok()?;
    let name = cells.next()?.trim_matches('`');
    let permanent = match cells.next()? {
        "permanent" => true,
        "temporary" | "connection" | "frame" => false,
        _ => return None,
    };
    Some((number, name, permanent))
}

#[test]
fn the_table_of_codes_is_complete() {
    let rows: Vec<_> = WIRE.lines().filter_map(code_row).collect();
    for (number, name, permanent) in &rows {
        let code = Code::from_u16(*number).expect("a code that exists");
        assert_eq!(format!("{code:?}"), *name);
        assert_eq!(code.is_permanent(), *permanent, "{name}");
    }
    let known: Vec<_> = (0..=u16::MAX).filter(|n| Code::from_u16(*n).is_some()).collect();
    let listed: Vec<_> = rows.iter().map(|(number, ..)| *number).collect();
    assert_eq!(listed, known, "each code once, in order");
}

#[test]
fn limits_are_stated() {
    for (name, value) in [
        ("NAME_BYTES_MAX", limits::NAME_BYTES_MAX),
        ("BODY_BYTES_MAX", limits::BODY_BYTES_MAX),
        ("TOKEN_BYTES_MAX", limits::TOKEN_BYTES_MAX),
        ("V2_FRAME_BYTES_MAX", limits::V2_FRAME_BYTES_MAX),
        ("V2_REPLY_BYTES_MAX", limits::V2_REPLY_BYTES_MAX),
        ("V1_CBOR_BYTES_MAX", limits::V1_CBOR_BYTES_MAX),
        ("V1_BATCH_BYTES_MAX", limits::V1_BATCH_BYTES_MAX),
        ("V1_BATCH_ENTRIES_MAX", limits::V1_BATCH_ENTRIES_MAX),
        ("V1_LOGIN_BYTES_MAX", limits::V1_LOGIN_BYTES_MAX),
        ("DEVICES_MAX", limits::DEVICES_MAX),
        ("CREDIT_MAX", limits::CREDIT_MAX as usize),
        ("V1_WINDOW", limits::V1_WINDOW as usize),
    ] {
        let row = WIRE.lines().find(|line| line.contains(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/WIRE.md lacks {name}"));
        let stated = row.split('|').nth(2).map(|cell| cell.trim().replace(',', ""));
        assert_eq!(stated, Some(value.to_string()), "{name}");
    }
}
