//! Times as they are typed and printed: UTC, in the layouts that Hubble's client has. Pure but for [`parse`]'s argument.

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

/// A layout that times are printed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// `Sep  1 10:00:00.137`.
    #[default]
    StampMilli,
    /// `2026-09-01`.
    YearMonthDay,
    /// `2026-09-01T10Z`.
    YearMonthDayHour,
    /// `2026-09-01T10:00Z`.
    YearMonthDayHourMinute,
    /// RFC 3339 with at most so many digits of a second.
    Rfc3339(usize),
    /// `Tue, 01 Sep 2026 10:00:00 +0000`.
    Rfc1123Z,
}

impl Layout {
    /// The layout of this name; the usual one for a name that is none, as Hubble's client has it.
    #[must_use]
    pub fn named(name: &str) -> Self {
        match name.to_lowercase().as_str() {
            "yearmonthday" => Self::YearMonthDay,
            "yearmonthdayhour" => Self::YearMonthDayHour,
            "yearmonthdayhourminute" => Self::YearMonthDayHourMinute,
            "rfc3339" => Self::Rfc3339(0),
            "rfc3339milli" => Self::Rfc3339(3),
            "rfc3339micro" => Self::Rfc3339(6),
            "rfc3339nano" => Self::Rfc3339(9),
            "rfc1123z" => Self::Rfc1123Z,
            _ => Self::StampMilli,
        }
    }

    /// A time in this layout.
    #[must_use]
    pub fn format(self, time: Option<&prost_types::Timestamp>) -> String {
        let stamp = time.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok());
        let Some(stamp) = stamp.filter(|_| time.is_some_and(|time| time.nanos >= 0)) else { return "N/A".to_owned() };
        let zoned = stamp.to_zoned(TimeZone::UTC);
        match self {
            Self::StampMilli => {
                format!("{}.{:03}", zoned.strftime("%b %e %H:%M:%S"), stamp.subsec_nanosecond() / 1_000_000)
            }
            Self::YearMonthDay => zoned.strftime("%Y-%m-%d").to_string(),
            Self::YearMonthDayHour => zoned.strftime("%Y-%m-%dT%HZ").to_string(),
            Self::YearMonthDayHourMinute => zoned.strftime("%Y-%m-%dT%H:%MZ").to_string(),
            Self::Rfc3339(digits) => {
                let fraction = format!("{:09}", stamp.subsec_nanosecond());
                let fraction = fraction.get(..digits).unwrap_or_default().trim_end_matches('0');
                let point = if fraction.is_empty() { "" } else { "." };
                format!("{}{point}{fraction}Z", zoned.strftime("%Y-%m-%dT%H:%M:%S"))
            }
            Self::Rfc1123Z => zoned.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string(),
        }
    }
}

/// A time: so long ago (`3s`, `1h43m`), or at a date.
#[must_use]
pub fn parse(text: &str, now: Timestamp) -> Option<prost_types::Timestamp> {
    let stamp = match ago(text) {
        Some(nanoseconds) => Timestamp::from_nanosecond(now.as_nanosecond().checked_sub(nanoseconds)?).ok()?,
        None => date(text)?,
    };
    let nanos = stamp.subsec_nanosecond();
    let (seconds, nanos) =
        if nanos < 0 { (stamp.as_second() - 1, nanos + 1_000_000_000) } else { (stamp.as_second(), nanos) };
    Some(prost_types::Timestamp { seconds, nanos })
}

fn date(text: &str) -> Option<Timestamp> {
    if let Ok(stamp) = text.parse::<Timestamp>() {
        return Some(stamp);
    }
    let utc = text.strip_suffix('Z').map(|text| format!("{text}+00:00"));
    let text = utc.as_deref().unwrap_or(text);
    for layout in ["%Y-%m-%dT%H%:z", "%Y-%m-%dT%H:%M%:z", "%a, %d %b %Y %H:%M:%S %z"] {
        if let Ok(stamp) = strtime::parse(layout, text).and_then(|parts| parts.to_timestamp()) {
            return Some(stamp);
        }
    }
    let day = strtime::parse("%Y-%m-%d", text).and_then(|parts| parts.to_date()).ok()?;
    day.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

/// Nanoseconds of a duration as Go writes them.
fn ago(text: &str) -> Option<i128> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    const UNITS: [(&str, i128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let &(_, length) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || fraction.len() > 18 {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let parts: i128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
        let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        total = total.checked_add(whole.checked_mul(length)?)?.checked_add(parts.checked_mul(length)? / scale)?;
        rest = after;
    }
    Some(sign * total)
}
