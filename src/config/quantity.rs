//! Times and sizes in settings: decimals with a unit, read exactly and printed back.
//! Never rounds: what is not a whole number of nanoseconds or bytes is refused. Invariant: what is
//! printed reads back as the same quantity.

use std::fmt;
use std::time::Duration;

use super::value::{Expected, Value};

const NANOSECONDS: u64 = 1_000_000_000;

/// Reads a time: a plain number is seconds.
pub(crate) fn duration(text: &str, min: Duration, max: Duration) -> Result<Duration, Expected> {
    let (number, unit) = number_and_unit(text);
    let unit_nanoseconds = match unit {
        "us" => Some(1_000),
        "ms" => Some(1_000_000),
        "" | "s" => Some(NANOSECONDS),
        "min" => Some(60 * NANOSECONDS),
        "h" => Some(3_600 * NANOSECONDS),
        "d" => Some(86_400 * NANOSECONDS),
        _ => None,
    };
    let found = unit_nanoseconds
        .and_then(|unit| scaled(number, unit))
        .map(Duration::from_nanos);
    match found {
        Some(found) if (min..=max).contains(&found) => Ok(found),
        found => {
            let (min, max) = (Value::Duration(min), Value::Duration(max));
            let zero = if found.is_some_and(|found| found.is_zero()) {
                "more than zero: "
            } else {
                ""
            };
            let units = "a plain number is seconds, or with us, ms, s, min, h, d";
            Err(Expected::new(format!(
                "{zero}a time from {min} to {max} ({units})"
            )))
        }
    }
}

/// Reads a number of bytes, with or without a unit.
pub(crate) fn size(text: &str, min: u64, max: u64) -> Result<u64, Expected> {
    let (number, unit) = number_and_unit(text);
    let unit_bytes = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "k" | "kb" | "kib" => Some(1 << 10),
        "m" | "mb" | "mib" => Some(1 << 20),
        "g" | "gb" | "gib" => Some(1 << 30),
        _ => None,
    };
    match unit_bytes.and_then(|unit| scaled(number, unit)) {
        Some(found) if (min..=max).contains(&found) => Ok(found),
        _ => {
            let (min, max) = (Value::Size(min), Value::Size(max));
            let units = "a plain number is bytes, or with kB, MB, GB, powers of 1024";
            Err(Expected::new(format!(
                "a size from {min} to {max} ({units})"
            )))
        }
    }
}

/// Prints a time so that [`duration`] reads it back.
pub(super) fn print_duration(time: Duration, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (seconds, nanoseconds) = (time.as_secs(), time.subsec_nanos());
    match (seconds, nanoseconds) {
        (0, 0) => out.write_str("0s"),
        (_, 0) if seconds % 86_400 == 0 => write!(out, "{}d", seconds / 86_400),
        (_, 0) if seconds % 3_600 == 0 => write!(out, "{}h", seconds / 3_600),
        (_, 0) => write!(out, "{seconds}s"),
        (0, _) if nanoseconds % 1_000_000 == 0 => write!(out, "{}ms", nanoseconds / 1_000_000),
        _ => write!(out, "{seconds}.{nanoseconds:09}s"),
    }
}

/// Prints a size so that [`size`] reads it back.
pub(super) fn print_size(bytes: u64, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    match bytes {
        0 => out.write_str("0"),
        _ if bytes.is_multiple_of(1 << 20) => write!(out, "{}MB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => write!(out, "{}kB", bytes >> 10),
        _ => write!(out, "{bytes}"),
    }
}

fn number_and_unit(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    (&text[..end], text[end..].trim_start_matches([' ', '\t']))
}

/// `number`, a decimal such as `1.5`, times `unit`, if that is whole and fits.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    // `5.` and `.5` too, as Python has it, but not the point alone.
    let (whole, fraction) = match number.split_once('.') {
        Some(("", "")) => return None,
        Some(("", fraction)) => ("0", fraction),
        Some((whole, fraction)) => (whole, fraction),
        None => (number, "0"),
    };
    let fraction = match fraction.trim_end_matches('0') {
        "" => "0",
        fraction => fraction,
    };
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let scale = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let parts = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit);
    if !parts.is_multiple_of(u128::from(scale)) {
        return None;
    }
    let below_one = u64::try_from(parts / u128::from(scale)).ok()?;
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(unit)?
        .checked_add(below_one)
}

#[cfg(test)]
mod tests {
    use super::super::keys::Shape;
    use super::super::value::{Surroundings, parse};
    use super::*;
    use proptest::prelude::*;

    const TIME: Shape = Shape::Duration(Duration::from_millis(1), Duration::from_secs(86_400));
    const SIZE: Shape = Shape::Size(1, 1 << 40);

    fn read(shape: Shape, text: &str) -> Result<Value, Expected> {
        let around = Surroundings {
            directory: "/".into(),
            home: None,
            home_of: |_| None,
        };
        parse(shape, text, &around)
    }

    #[test]
    fn times_are_seconds_or_carry_a_unit() {
        for (text, milliseconds) in [
            ("10", 10_000),
            ("10.0", 10_000),
            ("0.25", 250),
            (".5", 500),
            ("5.", 5_000),
            ("500ms", 500),
            ("10s", 10_000),
            ("10 s", 10_000),
            ("5min", 300_000),
            ("1.5h", 5_400_000),
            ("1d", 86_400_000),
            ("1500us", 1),
        ] {
            let Ok(Value::Duration(found)) = read(TIME, text) else {
                panic!("{text}")
            };
            assert_eq!(found.as_millis(), milliseconds, "{text}");
        }
        for text in [
            "", "ten", "1e3", "-1", ".", ".s", "1.2.3", "2d", "10 sec", "1m", "inf",
        ] {
            assert!(
                read(TIME, text)
                    .unwrap_err()
                    .what
                    .starts_with("a time from 1ms to 1d"),
                "{text}"
            );
        }
    }

    #[test]
    fn fault_96_a_time_of_zero_is_refused_in_every_spelling() {
        for text in ["0", "0.0", "0s", "0ms", "000", "0d"] {
            assert!(
                read(TIME, text)
                    .unwrap_err()
                    .what
                    .starts_with("more than zero"),
                "{text}"
            );
        }
    }

    #[test]
    fn sizes_are_bytes_or_powers_of_1024() {
        for (text, bytes) in [
            ("4096", 4_096),
            ("256kB", 256 << 10),
            ("256 KB", 256 << 10),
            ("1MB", 1 << 20),
            ("1MiB", 1 << 20),
            ("0.5m", 1 << 19),
            ("2GB", 2 << 30),
        ] {
            assert_eq!(read(SIZE, text), Ok(Value::Size(bytes)), "{text}");
        }
        for text in ["", "kB", "1.3B", "1TB", "0", "99999999999999999GB"] {
            assert!(
                read(SIZE, text)
                    .unwrap_err()
                    .what
                    .starts_with("a size from"),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn printed_times_and_sizes_read_back(ns in 1_000_000_u64..86_400_000_000_000, bytes in 1_u64..1 << 40) {
            for (shape, value) in [
                (TIME, Value::Duration(Duration::from_nanos(ns))),
                (TIME, Value::Duration(Duration::from_millis(ns / 1_000_000))),
                (TIME, Value::Duration(Duration::from_secs(1 + ns / 1_000_000_001))),
                (SIZE, Value::Size(bytes)),
                (SIZE, Value::Size((bytes >> 10).max(1) << 10)),
            ] {
                prop_assert_eq!(read(shape, &value.to_string()), Ok(value));
            }
        }
    }
}
