//! The head of a request to the metrics listener.
//! Never reads a body: nothing that is asked for has one. Invariant: any bytes are a request, the beginning of one, or
//! refused, within a bound of bytes and of header lines.

use httparse::{Error, Status};

/// Longest head: those of scrapers and browsers have less than a quarter.
pub(crate) const HEAD_BYTES_MAX: usize = 8 << 10;

/// Most lines of headers in it.
const HEADERS_MAX: usize = 64;

/// What somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HttpRequest {
    /// How.
    pub method: HttpMethod,
    /// For what.
    pub target: HttpPage,
    /// Whether OpenMetrics is taken, and rather than Prometheus's own text.
    pub openmetrics: bool,
}

/// The methods that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpMethod {
    /// Head and content.
    Get,
    /// The head alone.
    Head,
    /// Nothing that is answered.
    Other,
}

/// The pages there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpPage {
    /// `/metrics`.
    Metrics,
    /// `/healthz`.
    Health,
    /// None.
    Other,
}

/// What bytes from a socket are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestHead {
    /// The beginning of a head.
    Partial,
    /// All of it.
    Whole(HttpRequest),
    /// No request.
    Malformed,
    /// More than is read.
    TooLarge,
}

impl RequestHead {
    /// Reads what has come so far.
    pub(crate) fn parse(bytes: &[u8]) -> RequestHead {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let seen = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
        match request.parse(seen) {
            Ok(Status::Complete(_)) => {}
            Ok(Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return RequestHead::Partial,
            Ok(Status::Partial) | Err(Error::TooManyHeaders) => return RequestHead::TooLarge,
            Err(_) => return RequestHead::Malformed,
        }
        let accepts = (request.headers.iter())
            .filter(|header| header.name.eq_ignore_ascii_case("accept"))
            .filter_map(|header| std::str::from_utf8(header.value).ok());
        RequestHead::Whole(HttpRequest {
            method: match request.method {
                Some("GET") => HttpMethod::Get,
                Some("HEAD") => HttpMethod::Head,
                _ => HttpMethod::Other,
            },
            target: HttpPage::of(request.path.unwrap_or_default()),
            openmetrics: prefers_openmetrics(accepts),
        })
    }
}

impl HttpPage {
    fn of(path: &str) -> HttpPage {
        // A proxy may send all of the address.
        let path = match path.strip_prefix("http://") {
            Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
            None => path,
        };
        match path.split(['?', '#']).next() {
            Some("/metrics") => HttpPage::Metrics,
            Some("/healthz") => HttpPage::Health,
            _ => HttpPage::Other,
        }
    }
}

/// Whether one of the two formats is wanted rather than the other, by the weights of RFC 9110.
fn prefers_openmetrics<'a>(accepts: impl Iterator<Item = &'a str>) -> bool {
    let (mut openmetrics, mut text) = (0_u16, 0_u16);
    for range in accepts.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let weight = parts
            .find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
            .map_or(1_000, thousandths);
        if media.eq_ignore_ascii_case("application/openmetrics-text") {
            openmetrics = openmetrics.max(weight);
        } else if ["text/plain", "text/*", "*/*"]
            .iter()
            .any(|known| media.eq_ignore_ascii_case(known))
        {
            text = text.max(weight);
        }
    }
    openmetrics > 0 && openmetrics >= text
}

fn thousandths(weight: &str) -> u16 {
    let weight = weight.trim().parse::<f64>().ok();
    let weight = weight.filter(|weight| (0.0..=1.0).contains(weight));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most 1000"
    )]
    weight.map_or(0, |weight| (weight * 1e3) as u16)
}

/// The body of the fuzz target: reading says the same of a head whatever comes behind it.
pub fn read_any(bytes: &[u8]) {
    let head = RequestHead::parse(bytes);
    assert!(bytes.len() < HEAD_BYTES_MAX || head != RequestHead::Partial);
    if let RequestHead::Whole(request) = head {
        let more = [bytes, b"behind"].concat();
        assert_eq!(RequestHead::parse(&more), RequestHead::Whole(request));
    }
    for end in [bytes.len() / 2, bytes.len().saturating_sub(1)] {
        if head == RequestHead::Partial {
            assert_eq!(RequestHead::parse(&bytes[..end]), RequestHead::Partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(text: &str) -> HttpRequest {
        match RequestHead::parse(text.as_bytes()) {
            RequestHead::Whole(request) => request,
            other => panic!("{other:?}: {text}"),
        }
    }

    #[test]
    fn a_request_is_told_by_its_method_its_path_and_what_it_accepts() {
        let of = |line: &str| whole(&format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert_eq!(of("GET /metrics").target, HttpPage::Metrics);
        assert_eq!(of("GET /metrics?a=b").target, HttpPage::Metrics);
        assert_eq!(of("GET http://db:1/healthz").target, HttpPage::Health);
        for other in ["/", "/metrics/", "//metrics", "/%6detrics", "http://db"] {
            assert_eq!(
                of(&format!("GET {other}")).target,
                HttpPage::Other,
                "{other}"
            );
        }
        assert_eq!(of("HEAD /metrics").method, HttpMethod::Head);
        for other in ["POST", "get", "DELETE", "OPTIONS"] {
            assert_eq!(of(&format!("{other} /metrics")).method, HttpMethod::Other);
        }
    }

    #[test]
    fn the_format_is_the_one_that_weighs_more() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.2";
        for (accept, openmetrics) in [
            (prometheus, true),
            ("application/openmetrics-text", true),
            ("APPLICATION/OpenMetrics-text; q=0.1", true),
            ("application/openmetrics-text; q=0.1, text/plain", false),
            ("application/openmetrics-text; q=0", false),
            ("application/openmetrics-text; q=x", false),
            ("text/html, */*;q=0.8", false),
            ("", false),
        ] {
            let head = format!("GET /metrics HTTP/1.1\r\nAccept: {accept}\r\n\r\n");
            assert_eq!(whole(&head).openmetrics, openmetrics, "{accept}");
        }
        assert!(!whole("GET /metrics HTTP/1.0\r\n\r\n").openmetrics);
    }

    #[test]
    fn fault_177_a_head_is_bounded_and_garbage_is_refused() {
        let long = format!("GET /metrics HTTP/1.1\r\nA: {}", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(RequestHead::parse(long.as_bytes()), RequestHead::TooLarge);
        let many = "A: b\r\n".repeat(HEADERS_MAX + 1);
        let many = format!("GET / HTTP/1.1\r\n{many}\r\n");
        assert_eq!(RequestHead::parse(many.as_bytes()), RequestHead::TooLarge);
        for garbage in [
            &b"\x16\x03\x01\x02\x00"[..],
            b"GET /metrics\r\n",
            b"WALMGR4\0",
            b"\0",
        ] {
            assert_eq!(
                RequestHead::parse(garbage),
                RequestHead::Malformed,
                "{garbage:?}"
            );
        }
        assert_eq!(RequestHead::parse(b"GET /met"), RequestHead::Partial);
        assert_eq!(RequestHead::parse(b""), RequestHead::Partial);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            text in "(GET|HEAD|POST) /[a-z?]{0,9} HTTP/1.[01]\r\n([A-Za-z]{1,9}: [ -~]{0,40}\r\n){0,5}(\r\n)?",
        ) {
            read_any(&bytes);
            read_any(text.as_bytes());
        }
    }
}
