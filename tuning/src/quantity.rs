//! Quantities as people read and write them: `20,000`, `64 MiB`.

/// A count with a comma between thousands.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

const UNITS: [(&str, u64); 4] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Bytes in the largest binary unit that they fill, one decimal when it is
/// not a whole number of them.
pub fn bytes(n: u64) -> String {
    for (name, unit) in UNITS {
        if n >= unit {
            let tenths = (u128::from(n) * 10 + u128::from(unit) / 2) / u128::from(unit);
            return if tenths.is_multiple_of(10) {
                format!("{} {name}", tenths / 10)
            } else {
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            };
        }
    }
    format!("{n} B")
}

/// Reads bytes: a whole number, or one with `KiB`, `MiB`, `GiB`, `TiB` after
/// it. Underscores between digits are allowed; decimal units are refused,
/// because `64MB` would not be a power of two and nobody would notice.
///
/// # Errors
/// A sentence that says what would be understood.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (digits, unit) = (text[..digits_end].replace('_', ""), text[digits_end..].trim());
    let scale = match unit {
        "" | "B" => Some(1),
        _ => {
            UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, scale)| *scale)
        }
    };
    match (digits.parse::<u64>(), scale) {
        (Ok(n), Some(scale)) => {
            n.checked_mul(scale).ok_or_else(|| format!("{text} is more bytes than 64 bits count"))
        }
        _ => Err(format!("'{text}' is not a size: write bytes (67108864) or 64KiB, 64MiB, 64GiB")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped() {
        for (n, text) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (20_000, "20,000"), (1_048_576, "1,048,576")]
        {
            assert_eq!(count(n), text);
        }
    }

    #[test]
    fn bytes_are_rounded_to_one_decimal() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (64 << 20, "64 MiB"),
            ((24 << 30) - (300 << 20), "23.7 GiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, n) in [
            ("0", 0),
            ("64MiB", 64 << 20),
            ("64 mib", 64 << 20),
            ("1_000", 1000),
            ("2GiB", 2 << 30),
        ] {
            assert_eq!(parse_bytes(text), Ok(n));
        }
        for text in ["", "MiB", "-1", "64MB", "1.5GiB", "99999999999TiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
