//! Personal data and secrets: how each kind is written, and the digits that prove it.

use std::net::Ipv6Addr;

use super::patterns::{Patterns, Written};
use crate::config::guardrails::PiiType;

impl PiiType {
    fn forms(self) -> &'static [Form] {
        match self {
            PiiType::Email => &[(r"[\w.+%'-]+@(?:[\w-]+\.)+\pL{2,}", any)],
            PiiType::Phone => PHONE,
            PiiType::Card => &[(r"(?-u:\b)[2-6][0-9](?:[ -]?[0-9]){10,17}(?-u:\b)", card)],
            PiiType::Iban => &[(r"(?-u:\b)[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]){11,30}(?-u:\b)", iban)],
            PiiType::UsSsn => &[(r"(?-u:\b)[0-8][0-9]{2}[- ][0-9]{2}[- ][0-9]{4}(?-u:\b)", us_ssn)],
            PiiType::UkNhs => &[(r"(?-u:\b)[0-9]{3}[ -][0-9]{3}[ -][0-9]{4}(?-u:\b)", uk_nhs)],
            PiiType::FrNir => {
                &[(r"(?-u:\b)[12] ?[0-9]{2} ?[0-9]{2} ?[0-9][0-9AB] ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}(?-u:\b)", fr_nir)]
            }
            PiiType::DeTaxId => &[(r"(?-u:\b)[1-9][0-9] ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}(?-u:\b)", de_tax_id)],
            PiiType::ItCodiceFiscale => &[(
                r"(?-u:\b)[A-Z]{6}[0-9L-V]{2}[A-EHLMPR-T][0-9L-V]{2}[A-Z][0-9L-V]{3}[A-Z](?-u:\b)",
                it_codice_fiscale,
            )],
            PiiType::EsDni => &[(r"(?-u:\b)(?:[0-9]{8}|[XYZ][ -]?[0-9]{7})[ -]?[A-Z](?-u:\b)", es_dni)],
            PiiType::NlBsn => {
                &[(r"(?i-u:\b(?:bsn|burgerservicenummer|sofinummer))[^0-9\n]{1,20}[0-9]{9}(?-u:\b)", nl_bsn)]
            }
            PiiType::BeNationalNumber => {
                &[(r"(?-u:\b)[0-9]{2}\.?[01][0-9]\.?[0-3][0-9]-?[0-9]{3}\.?[0-9]{2}(?-u:\b)", be_national_number)]
            }
            PiiType::ChAhv => &[(r"(?-u:\b)756\.?[0-9]{4}\.?[0-9]{4}\.?[0-9]{2}(?-u:\b)", ch_ahv)],
            PiiType::PlPesel => &[(r"(?-u:\b)[0-9]{11}(?-u:\b)", pl_pesel)],
            PiiType::SePersonnummer => {
                &[(r"(?-u:\b)(?:19|20)?[0-9]{2}[01][0-9][0-3][0-9][-+][0-9]{4}(?-u:\b)", se_personnummer)]
            }
            PiiType::BrCpf => &[(r"(?-u:\b)[0-9]{3}\.?[0-9]{3}\.?[0-9]{3}-?[0-9]{2}(?-u:\b)", br_cpf)],
            PiiType::InAadhaar => &[(r"(?-u:\b)[2-9][0-9]{3}[ -]?[0-9]{4}[ -]?[0-9]{4}(?-u:\b)", in_aadhaar)],
            PiiType::CnResidentId => {
                &[(r"(?-u:\b)[1-9][0-9]{5}(?:19|20)[0-9]{2}[01][0-9][0-3][0-9]{4}[0-9Xx](?-u:\b)", cn_resident_id)]
            }
            PiiType::CaSin => &[(r"(?-u:\b)[1-79][0-9]{2}[ -][0-9]{3}[ -][0-9]{3}(?-u:\b)", ca_sin)],
            PiiType::AuTfn => &[(
                r"(?i-u:\b(?:tfn|tax file (?:number|no)))[^0-9\n]{1,20}[0-9]{3} ?[0-9]{3} ?[0-9]{3}(?-u:\b)",
                au_tfn,
            )],
            PiiType::ApiKey => API_KEY,
            PiiType::Jwt => &[(r"(?-u:\b)eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*", any)],
            PiiType::PrivateKey => &[(
                r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:(?:[^-]|-[^-])*-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|(?:\s|\\n|[A-Za-z0-9+/=]{16,})*)",
                any,
            )],
            PiiType::IpAddress => &[
                (
                    r"(?-u:\b)(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(?-u:\b)",
                    any,
                ),
                (r"(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}", ipv6),
            ],
        }
    }
}

/// An expression, and how much of what it matches is what it looks like: `None` if nothing is.
type Form = (&'static str, fn(&str) -> Option<usize>);

const PHONE: &[Form] = &[
    (r"\+[1-9](?:[ .()/-]{0,2}[0-9]){7,14}(?-u:\b)", phone),
    (r"(?-u:\b)00[1-9](?:[ .()/-]{0,2}[0-9]){8,14}(?-u:\b)", phone),
    (r"(?:\([2-9][0-9]{2}\) ?|(?-u:\b)[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}(?-u:\b)", phone),
    (r"(?-u:\b)0[1-9](?:[ .-][0-9]{2}){4}(?-u:\b)", phone),
    (r"(?-u:\b)0[1-9][0-9]{1,4}(?: ?/ ?| |-)[0-9]{2,4}(?:[ -]?[0-9]{2,4}){1,3}(?-u:\b)", phone),
    (r"\(0[1-9][0-9]{1,4}\) ?[0-9]{2,4}(?:[ -]?[0-9]{2,4}){1,3}(?-u:\b)", phone),
];

const API_KEY: &[Form] = &[
    // AWS
    (r"(?-u:\b)(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?-u:\b)", any),
    (r#"(?i-u:aws_?secret_?(?:access_?)?key)["'\s:=]{1,6}[A-Za-z0-9/+]{40}"#, any),
    // GitHub, GitLab
    (r"(?-u:\b)gh[pousr]_[A-Za-z0-9]{36,}", any),
    (r"(?-u:\b)github_pat_[A-Za-z0-9_]{22,}", any),
    (r"(?-u:\b)gl(?:pat|dt|rt|ptt|soat)-[A-Za-z0-9_-]{20,}", any),
    // OpenAI, Anthropic, OpenRouter, DeepSeek and others who begin in the same way
    (r"(?-u:\b)sk-(?:[a-z0-9]{2,8}-)*[A-Za-z0-9_-]{20,}", digits_and_letters),
    // Google
    (r"(?-u:\b)AIza[A-Za-z0-9_-]{35}", any),
    (r"(?-u:\b)GOCSPX-[A-Za-z0-9_-]{28}", any),
    (r"(?-u:\b)ya29\.[A-Za-z0-9_-]{20,}", any),
    // Groq, xAI, Perplexity, Replicate, Hugging Face
    (r"(?-u:\b)gsk_[A-Za-z0-9]{40,}", any),
    (r"(?-u:\b)xai-[A-Za-z0-9]{60,}", any),
    (r"(?-u:\b)pplx-[A-Za-z0-9]{40,}", any),
    (r"(?-u:\b)r8_[A-Za-z0-9]{37,}", any),
    (r"(?-u:\b)hf_[A-Za-z0-9]{30,}", any),
    // Slack
    (r"(?-u:\b)xox[abeoprs]-[A-Za-z0-9-]{10,}", any),
    (r"hooks\.slack\.com/services/T[A-Za-z0-9_]+/B[A-Za-z0-9_]+/[A-Za-z0-9_]{16,}", any),
    // Stripe, Shopify, Square
    (r"(?-u:\b)(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}", any),
    (r"(?-u:\b)whsec_[A-Za-z0-9+/=]{24,}", any),
    (r"(?-u:\b)shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}", any),
    (r"(?-u:\b)sq0(?:atp|csp)-[A-Za-z0-9_-]{22,}", any),
    // Registries
    (r"(?-u:\b)npm_[A-Za-z0-9]{36}", any),
    (r"(?-u:\b)pypi-AgE[A-Za-z0-9_-]{50,}", any),
    (r"(?-u:\b)dckr_pat_[A-Za-z0-9_-]{20,}", any),
    // Clouds and services
    (r"(?-u:\b)do[opr]_v1_[a-f0-9]{64}", any),
    (r"(?-u:\b)dapi[a-f0-9]{32}", any),
    (r"(?-u:\b)hv[sb]\.[A-Za-z0-9_-]{24,}", any),
    (r"(?-u:\b)SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}", any),
    (r"(?-u:\b)SK[0-9a-f]{32}(?-u:\b)", any),
    (r"(?-u:\b)key-[0-9a-f]{32}(?-u:\b)", any),
    (r"(?-u:\b)[0-9]{8,10}:AA[A-Za-z0-9_-]{33}", any),
    (r"AccountKey=[A-Za-z0-9+/]{86}==", any),
    (r"(?-u:\b)hgk_[A-Za-z0-9]{32,}", any),
];

/// Finds these types; none means the usual ones.
pub fn patterns(types: &[PiiType]) -> Result<Patterns, (usize, String)> {
    let usual = PiiType::ALL.iter().copied().filter(|kind| *kind != PiiType::IpAddress);
    let types: Vec<PiiType> = if types.is_empty() { usual.collect() } else { types.to_vec() };
    let forms = types.iter().flat_map(|kind| kind.forms().iter().map(|form| (kind.name(), form)));
    let written: Vec<Written<'_>> =
        forms.map(|(name, (expression, valid))| Written { expression, what: Some(name), valid: *valid }).collect();
    Patterns::new(&written, None)
}

/// All of it, whatever it is.
pub fn any(text: &str) -> Option<usize> {
    Some(text.len())
}

fn all_if(text: &str, valid: bool) -> Option<usize> {
    valid.then_some(text.len())
}

fn digits(text: &str) -> Vec<u32> {
    text.chars().filter_map(|c| c.to_digit(10)).collect()
}

fn phone(text: &str) -> Option<usize> {
    all_if(text, (9..=15).contains(&digits(text).len()))
}

/// A key is made at random: a name in the same form, such as `sk-some-kind-of-long-identifier`, has no digits.
fn digits_and_letters(text: &str) -> Option<usize> {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    let capitals = text.bytes().filter(u8::is_ascii_uppercase).count();
    all_if(text, digits >= 2 && (capitals >= 1 || text.len() >= 32))
}

fn luhn(digits: &[u32]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, digit)| match i % 2 {
            0 => *digit,
            _ => digit * 2 / 10 + digit * 2 % 10,
        })
        .sum();
    sum.is_multiple_of(10)
}

/// The sum of digits by weights.
fn weighted(digits: &[u32], weights: &[u32]) -> u32 {
    digits.iter().zip(weights).map(|(digit, weight)| digit * weight).sum()
}

/// What a number ends with, as a number.
fn number(digits: &[u32]) -> u64 {
    digits.iter().fold(0, |number, digit| number * 10 + u64::from(*digit))
}

/// Digits that stand behind the number are not part of it: the longest beginning that is one counts.
fn card(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let ends = (0..bytes.len())
        .rev()
        .filter(|at| bytes[*at].is_ascii_digit() && bytes.get(at + 1).is_none_or(|next| !next.is_ascii_digit()));
    ends.map(|at| at + 1).find(|end| text.get(..*end).is_some_and(|text| is_card(&digits(text))))
}

fn is_card(digits: &[u32]) -> bool {
    let start = |n: usize| digits.get(..n).map_or(0, number);
    let lengths: &[usize] = match (start(2), start(3), start(4)) {
        (40..=49, ..) => &[13, 16, 19],
        (51..=55, ..) | (_, _, 2221..=2720) => &[16],
        (34 | 37, ..) => &[15],
        (36 | 38 | 39, ..) | (_, 300..=305, _) => &[14, 16, 19],
        (35, ..) | (65, ..) | (_, 644..=649, _) | (_, _, 6011) => &[16, 17, 18, 19],
        (62, ..) => &[16, 17, 18, 19],
        (50 | 56..=58 | 60 | 61 | 63 | 67 | 68, ..) => &[12, 13, 14, 15, 16, 17, 18, 19],
        _ => return false,
    };
    let same = digits.windows(2).all(|pair| pair.first() == pair.last());
    lengths.contains(&digits.len()) && !same && luhn(digits)
}

/// Lengths by country (ISO 13616, the registry of SWIFT).
const IBANS: &[(&str, usize)] = &[
    ("AD", 24),
    ("AE", 23),
    ("AL", 28),
    ("AT", 20),
    ("AZ", 28),
    ("BA", 20),
    ("BE", 16),
    ("BG", 22),
    ("BH", 22),
    ("BI", 27),
    ("BR", 29),
    ("BY", 28),
    ("CH", 21),
    ("CR", 22),
    ("CY", 28),
    ("CZ", 24),
    ("DE", 22),
    ("DJ", 27),
    ("DK", 18),
    ("DO", 28),
    ("EE", 20),
    ("EG", 29),
    ("ES", 24),
    ("FI", 18),
    ("FK", 18),
    ("FO", 18),
    ("FR", 27),
    ("GB", 22),
    ("GE", 22),
    ("GI", 23),
    ("GL", 18),
    ("GR", 27),
    ("GT", 28),
    ("HN", 28),
    ("HR", 21),
    ("HU", 28),
    ("IE", 22),
    ("IL", 23),
    ("IQ", 23),
    ("IS", 26),
    ("IT", 27),
    ("JO", 30),
    ("KW", 30),
    ("KZ", 20),
    ("LB", 28),
    ("LC", 32),
    ("LI", 21),
    ("LT", 20),
    ("LU", 20),
    ("LV", 21),
    ("LY", 25),
    ("MC", 27),
    ("MD", 24),
    ("ME", 22),
    ("MK", 19),
    ("MN", 20),
    ("MR", 27),
    ("MT", 31),
    ("MU", 30),
    ("NI", 28),
    ("NL", 18),
    ("NO", 15),
    ("OM", 23),
    ("PK", 24),
    ("PL", 28),
    ("PS", 29),
    ("PT", 25),
    ("QA", 29),
    ("RO", 24),
    ("RS", 22),
    ("RU", 33),
    ("SA", 24),
    ("SC", 31),
    ("SD", 18),
    ("SE", 24),
    ("SI", 19),
    ("SK", 24),
    ("SM", 27),
    ("SO", 23),
    ("ST", 25),
    ("SV", 28),
    ("TL", 23),
    ("TN", 24),
    ("TR", 26),
    ("UA", 29),
    ("VA", 22),
    ("VG", 24),
    ("XK", 20),
    ("YE", 30),
];

fn iban(text: &str) -> Option<usize> {
    let country = text.get(..2)?.to_ascii_uppercase();
    let (_, length) = IBANS.iter().find(|(known, _)| *known == country)?;
    let mut characters = text.bytes().enumerate().filter(|(_, byte)| byte.is_ascii_alphanumeric());
    let (last, _) = characters.nth(length - 1)?;
    let end = last + 1;
    if text.as_bytes().get(end).is_some_and(u8::is_ascii_alphanumeric) {
        return None;
    }
    let plain: Vec<u8> = text.get(..end)?.bytes().filter(u8::is_ascii_alphanumeric).collect();
    let (head, rest) = plain.split_at_checked(4)?;
    let remainder = rest.iter().chain(head).fold(0u32, |sum, byte| match char::from(*byte).to_digit(36) {
        Some(value @ 0..=9) => (sum * 10 + value) % 97,
        Some(value) => (sum * 100 + value) % 97,
        None => sum,
    });
    (remainder == 1).then_some(end)
}

fn us_ssn(text: &str) -> Option<usize> {
    let digits = digits(text);
    let (area, group, serial) = (digits.get(..3)?, digits.get(3..5)?, digits.get(5..)?);
    let known_as_example = number(&digits) == 78_051_120;
    let given = !matches!(number(area), 0 | 666) && number(group) > 0 && number(serial) > 0;
    let alike = text.as_bytes().get(3) == text.as_bytes().get(6);
    all_if(text, given && alike && !known_as_example)
}

fn uk_nhs(text: &str) -> Option<usize> {
    let digits = digits(text);
    let check = 11 - weighted(&digits, &[10, 9, 8, 7, 6, 5, 4, 3, 2]) % 11;
    all_if(text, digits.get(9) == Some(&(check % 11)) && check != 10)
}

fn fr_nir(text: &str) -> Option<usize> {
    let plain: String = text.chars().filter(char::is_ascii_alphanumeric).collect();
    // Corsica.
    let plain = plain.replace("2A", "19").replace("2B", "18");
    let digits = digits(&plain);
    let (body, key) = digits.split_at_checked(13)?;
    let month = number(digits.get(3..5)?);
    all_if(text, key.len() == 2 && month > 0 && number(key) == 97 - number(body) % 97)
}

fn de_tax_id(text: &str) -> Option<usize> {
    let digits = digits(text);
    let (body, check) = digits.split_at_checked(10)?;
    // One digit stands there twice or three times, the others once or not at all.
    let mut counts = [0u32; 10];
    body.iter().for_each(|digit| counts.get_mut(*digit as usize).into_iter().for_each(|count| *count += 1));
    let repeated = counts.iter().filter(|count| **count > 1).count() == 1 && counts.iter().all(|count| *count <= 3);
    let product = body.iter().fold(10, |product, digit| match (digit + product) % 10 {
        0 => 10 * 2 % 11,
        sum => sum * 2 % 11,
    });
    all_if(text, repeated && check.first() == Some(&((11 - product) % 10)))
}

fn it_codice_fiscale(text: &str) -> Option<usize> {
    const ODD: [u32; 26] =
        [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23];
    let value = |byte: u8| match byte {
        b'0'..=b'9' => usize::from(byte - b'0'),
        _ => usize::from(byte.saturating_sub(b'A')),
    };
    let (body, check) = text.as_bytes().split_at_checked(15)?;
    let sum: u32 = body
        .iter()
        .enumerate()
        .map(|(i, byte)| match i % 2 {
            0 => ODD.get(value(*byte)).copied().unwrap_or_default(),
            _ => value(*byte) as u32,
        })
        .sum();
    all_if(text, check.first().is_some_and(|byte| value(*byte) as u32 == sum % 26))
}

fn es_dni(text: &str) -> Option<usize> {
    let (first, last) = (text.chars().next()?, text.chars().next_back()?);
    let leading = match first {
        'X' => Some(0),
        'Y' => Some(1),
        'Z' => Some(2),
        _ => None,
    };
    let all: Vec<u32> = leading.into_iter().chain(digits(text)).collect();
    let letter = "TRWAGMYFPDXBNJZSQVHLCKE".chars().nth((number(&all) % 23) as usize);
    all_if(text, all.len() == 8 && letter == Some(last))
}

fn nl_bsn(text: &str) -> Option<usize> {
    let digits = digits(text);
    let sum = weighted(&digits, &[9, 8, 7, 6, 5, 4, 3, 2]);
    let last = digits.get(8)?;
    all_if(text, number(&digits) > 0 && (sum + 11 - last % 11).is_multiple_of(11))
}

fn be_national_number(text: &str) -> Option<usize> {
    let digits = digits(text);
    let (body, check) = digits.split_at_checked(9)?;
    let (before, since) = (97 - number(body) % 97, 97 - (2_000_000_000 + number(body)) % 97);
    all_if(text, [before, since].contains(&number(check)) && (1..=12).contains(&number(digits.get(2..4)?)))
}

fn ch_ahv(text: &str) -> Option<usize> {
    let digits = digits(text);
    let sum = weighted(&digits, &[1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3]);
    all_if(text, digits.get(12) == Some(&((10 - sum % 10) % 10)))
}

fn pl_pesel(text: &str) -> Option<usize> {
    let digits = digits(text);
    let sum = weighted(&digits, &[1, 3, 7, 9, 1, 3, 7, 9, 1, 3]);
    let (month, day) = (number(digits.get(2..4)?) % 20, number(digits.get(4..6)?));
    let date = (1..=12).contains(&month) && (1..=31).contains(&day);
    all_if(text, date && digits.get(10) == Some(&((10 - sum % 10) % 10)))
}

fn se_personnummer(text: &str) -> Option<usize> {
    let digits = digits(text);
    let last = digits.get(digits.len().checked_sub(10)?..)?;
    let (month, day) = (number(last.get(2..4)?), number(last.get(4..6)?));
    all_if(text, (1..=12).contains(&month) && (1..=31).contains(&day) && luhn(last))
}

fn br_cpf(text: &str) -> Option<usize> {
    let digits = digits(text);
    let same = digits.windows(2).all(|pair| pair.first() == pair.last());
    let check = |weights: &[u32]| match weighted(&digits, weights) % 11 {
        0 | 1 => 0,
        rest => 11 - rest,
    };
    let first = check(&[10, 9, 8, 7, 6, 5, 4, 3, 2]);
    let second = check(&[11, 10, 9, 8, 7, 6, 5, 4, 3, 2]);
    all_if(text, !same && digits.get(9..11) == Some([first, second].as_slice()))
}

/// Verhoeff's scheme.
fn in_aadhaar(text: &str) -> Option<usize> {
    const TIMES: [[usize; 10]; 10] = [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        [1, 2, 3, 4, 0, 6, 7, 8, 9, 5],
        [2, 3, 4, 0, 1, 7, 8, 9, 5, 6],
        [3, 4, 0, 1, 2, 8, 9, 5, 6, 7],
        [4, 0, 1, 2, 3, 9, 5, 6, 7, 8],
        [5, 9, 8, 7, 6, 0, 4, 3, 2, 1],
        [6, 5, 9, 8, 7, 1, 0, 4, 3, 2],
        [7, 6, 5, 9, 8, 2, 1, 0, 4, 3],
        [8, 7, 6, 5, 9, 3, 2, 1, 0, 4],
        [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
    ];
    const TURNED: [[usize; 10]; 8] = [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        [1, 5, 7, 6, 2, 8, 3, 0, 9, 4],
        [5, 8, 0, 3, 7, 9, 6, 1, 4, 2],
        [8, 9, 1, 6, 0, 4, 3, 5, 2, 7],
        [9, 4, 5, 3, 1, 2, 6, 8, 7, 0],
        [4, 2, 8, 6, 5, 7, 3, 9, 0, 1],
        [2, 7, 9, 3, 8, 0, 6, 4, 1, 5],
        [7, 0, 4, 6, 9, 1, 3, 2, 5, 8],
    ];
    let digits = digits(text);
    let sum =
        digits.iter().rev().enumerate().fold(0, |sum, (i, digit)| TIMES[sum][TURNED[i % 8][*digit as usize % 10]]);
    let same = digits.windows(2).all(|pair| pair.first() == pair.last());
    all_if(text, sum == 0 && !same)
}

fn cn_resident_id(text: &str) -> Option<usize> {
    const CHECKS: &[u8] = b"10X98765432";
    let (body, check) = text.split_at_checked(17)?;
    let digits = digits(body);
    let sum = weighted(&digits, &[7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]);
    let (month, day) = (number(digits.get(10..12)?), number(digits.get(12..14)?));
    let right = CHECKS.get(sum as usize % 11) == check.to_ascii_uppercase().as_bytes().first();
    all_if(text, right && (1..=12).contains(&month) && (1..=31).contains(&day))
}

fn ca_sin(text: &str) -> Option<usize> {
    all_if(text, luhn(&digits(text)))
}

fn au_tfn(text: &str) -> Option<usize> {
    let sum = weighted(&digits(text), &[1, 4, 3, 7, 5, 8, 6, 9, 10]);
    all_if(text, sum > 0 && sum.is_multiple_of(11))
}

fn ipv6(text: &str) -> Option<usize> {
    all_if(text, text.len() > 4 && text.parse::<Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kind: PiiType, text: &str) -> Vec<String> {
        let patterns = patterns(&[kind]).unwrap_or_else(|(_, error)| panic!("{kind:?}: {error}"));
        let mut all = Vec::new();
        patterns.find(text, 0, &mut |found| {
            assert_eq!(found.what, Some(kind.name()));
            all.push(text[found.start..found.end].to_owned());
        });
        all
    }

    #[test]
    fn each_kind_is_found_by_its_check_digits_and_nothing_else_is() {
        use PiiType::*;
        for (kind, right, wrong) in [
            (Email, "jane.doe+x@mail.example.com", "jane at example.com, @handle, a@b"),
            (Phone, "+49 170 1234567", "12345 and 2024-01-02 10:00:00"),
            (Phone, "(212) 555-0187", "1.2.3.4 and 555-0187"),
            (Phone, "06 12 34 56 78", "06 12 34"),
            (Phone, "030/1234 5678", "3/4"),
            (Card, "4111 1111 1111 1111", "4111 1111 1111 1112"),
            (Card, "378282246310005", "378282246310006"),
            (Card, "5555-5555-5555-4444", "0000 0000 0000 0000"),
            (Iban, "DE89 3704 0044 0532 0130 00", "DE89 3704 0044 0532 0130 01"),
            (Iban, "GB82WEST12345698765432", "GB82WEST1234569876543"),
            (UsSsn, "536-22-1234", "000-22-1234, 666-22-1234, 536-00-1234, 536-22 1234"),
            (UkNhs, "943 476 5919", "943 476 5918"),
            (FrNir, "2 55 08 14 168 025 38", "2 55 08 14 168 025 39"),
            (DeTaxId, "86095742719", "86095742718"),
            (ItCodiceFiscale, "RSSMRA85T10A562S", "RSSMRA85T10A562T"),
            (EsDni, "12345678Z", "12345678A"),
            (EsDni, "X1234567L", "X1234567A"),
            (NlBsn, "BSN: 111222333", "BSN: 111222334 and 111222333"),
            (BeNationalNumber, "85.07.30-033.28", "85.07.30-033.29"),
            (ChAhv, "756.9217.0769.85", "756.9217.0769.84"),
            (PlPesel, "44051401359", "44051401358"),
            (SePersonnummer, "811218-9876", "811218-9875"),
            (BrCpf, "529.982.247-25", "529.982.247-26 and 111.111.111-11"),
            (InAadhaar, "2341 2341 2346", "2341 2341 2347"),
            (CnResidentId, "11010519491231002X", "110105194912310021"),
            (CaSin, "130 692 544", "130 692 545"),
            (AuTfn, "TFN 123 456 782", "TFN 123 456 783"),
            (ApiKey, "AKIAIOSFODNN7EXAMPLE", "AKIA and AKIAIOSFODNN7"),
            (ApiKey, "ghp_0123456789abcdefghijABCDEFGHIJ012345", "ghp_short"),
            (ApiKey, "sk-proj-abcDEF0123456789abcDEF0123", "sk-some-kind-of-long-identifier"),
            (Jwt, "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0xyz.c2ln", "eyJhbGciOiJIUzI1NiJ9.e30"),
            (IpAddress, "192.168.0.254", "1.2.3 and 999.1.1.1"),
            (IpAddress, "2001:db8::7", "10:20:30 and std::mem"),
        ] {
            assert_eq!(found(kind, &format!("see {right}, and")), [right], "{kind:?}");
            assert_eq!(found(kind, &format!("see {wrong}, and")), Vec::<String>::new(), "{kind:?}: {wrong}");
        }
    }

    #[test]
    fn digits_beside_a_number_do_not_hide_it() {
        assert_eq!(found(PiiType::Card, "4111 1111 1111 1111 12 27"), ["4111 1111 1111 1111"]);
        assert_eq!(found(PiiType::Card, "17 4111111111111111"), ["4111111111111111"]);
        assert_eq!(found(PiiType::Iban, "DE89370400440532013000 99 A"), ["DE89370400440532013000"]);
    }

    #[test]
    fn a_private_key_is_found_from_its_first_line_to_its_last() {
        let key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA75eX\nabc=\n-----END RSA PRIVATE KEY-----";
        assert_eq!(found(PiiType::PrivateKey, &format!("a {key} b")), [key]);
        let cut = "-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA75eX\n";
        assert_eq!(found(PiiType::PrivateKey, &format!("{cut}and so on")), [cut]);
        assert_eq!(found(PiiType::PrivateKey, "-----BEGIN PUBLIC KEY-----"), Vec::<String>::new());
    }

    #[test]
    fn all_together_are_found_in_one_text() {
        let patterns = patterns(&[]).unwrap_or_else(|(_, error)| panic!("{error}"));
        let mut all = Vec::new();
        let text =
            "Jane <jane@example.com>, card 4111111111111111, IBAN DE89370400440532013000, key AKIAIOSFODNN7EXAMPLE";
        patterns.find(text, 0, &mut |found| all.extend(found.what));
        all.sort_unstable();
        assert_eq!(all, ["api_key", "card", "email", "iban"]);
    }
}
