//! What a status code of the metadata service means, as one table.

/// The two kinds of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `PUT /latest/api/token`
    Token,
    /// `GET /latest/…`
    Item,
}

/// What follows from a status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The body is the answer.
    Take,
    /// The item does not exist.
    Absent,
    /// The token is not accepted (any more).
    TokenRefused,
    /// Overloaded or starting: ask again later.
    Later,
    /// Metadata is switched off for this instance.
    Disabled,
    /// Our own request is wrong; asking again cannot help.
    OurMistake,
    /// It does not know IMDSv2 tokens.
    NoTokens,
    /// No status that the service is known to give.
    Nonsense,
}

/// The retry table. Only overload is retried: 401 is answered with one new token, all else is final.
pub(super) fn verdict(kind: Kind, status: u16) -> Verdict {
    match (kind, status) {
        (_, 200) => Verdict::Take,
        (_, 403) => Verdict::Disabled,
        (_, 429 | 500..=599) => Verdict::Later,
        (Kind::Item, 401) => Verdict::TokenRefused,
        (Kind::Item, 404) => Verdict::Absent,
        (Kind::Token, 400) => Verdict::OurMistake,
        (Kind::Token, 404 | 405) => Verdict::NoTokens,
        _ => Verdict::Nonsense,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_overload_is_retried() {
        for kind in [Kind::Token, Kind::Item] {
            for status in 100..=599 {
                let is_later = verdict(kind, status) == Verdict::Later;
                assert_eq!(is_later, status == 429 || status >= 500, "{kind:?} {status}");
            }
        }
    }

    #[test]
    fn each_documented_status_has_its_meaning() {
        assert_eq!(verdict(Kind::Token, 400), Verdict::OurMistake);
        assert_eq!(verdict(Kind::Token, 403), Verdict::Disabled);
        assert_eq!(verdict(Kind::Token, 404), Verdict::NoTokens);
        assert_eq!(verdict(Kind::Token, 401), Verdict::Nonsense);
        assert_eq!(verdict(Kind::Item, 401), Verdict::TokenRefused);
        assert_eq!(verdict(Kind::Item, 403), Verdict::Disabled);
        assert_eq!(verdict(Kind::Item, 404), Verdict::Absent);
        assert_eq!(verdict(Kind::Item, 302), Verdict::Nonsense);
    }
}
