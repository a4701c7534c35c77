//! The path that is authorised is the path that is forwarded, whatever way it is written.

use crate::support::*;

/// `/admin` is refused to everyone here; whatever else goes to the origin.
const PROTECTED: &str = "
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services:
  s:
    routes:
      public: { match: { path_prefix: / }, backend: { upstream: origin } }
      admin:
        match: { path_prefix: /admin }
        filters: [{ ip_restriction: { deny: [127.0.0.0/8] } }]
        backend: { upstream: origin }
";

/// Reads a path as a careless origin might: decodes, straightens slashes, drops path parameters of dot segments, resolves dots.
fn careless(path: &str, decodings: usize) -> String {
    let mut bytes = path.as_bytes().to_vec();
    for _ in 0..decodings {
        bytes = decode(&bytes);
    }
    // Overlong UTF-8 of `.`, `/` and `\`, as lenient decoders once took them.
    let mut text = String::new();
    let mut rest = bytes.as_slice();
    while let Some((&first, tail)) = rest.split_first() {
        let (char, length) = match (first, tail) {
            (0xc0 | 0xc1, [second, ..]) => ((((first & 0x1f) << 6) | (second & 0x3f)) as char, 2),
            (0xe0, [0x80 | 0x81, third, ..]) => ((((tail[0] & 0x3f) << 6) | (third & 0x3f)) as char, 3),
            (b'\\', _) => ('/', 1),
            _ => (first as char, 1),
        };
        text.push(if char == '\\' { '/' } else { char });
        rest = &rest[length..];
    }
    let text = text.split('\0').next().unwrap_or_default();
    let mut segments: Vec<&str> = Vec::new();
    for segment in text.split('/') {
        match segment.split(';').next().unwrap_or_default().trim_end() {
            "" | "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

fn decode(bytes: &[u8]) -> Vec<u8> {
    let hex = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        if let (b'%', [high, low, ..]) = (first, tail)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            out.push(high << 4 | low);
            rest = &tail[2..];
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

fn is_protected(path: &str) -> bool {
    (1..=2).map(|decodings| careless(path, decodings)).any(|path| path == "/admin" || path.starts_with("/admin/"))
}

/// Every way to reach `/admin` that we could think of, combined.
fn lattice() -> Vec<String> {
    let before = [
        "/",
        "//",
        "///",
        "/./",
        "/.//",
        "/%2e/",
        "/%2E/",
        "/x/../",
        "/x/%2e%2e/",
        "/x/.%2e/",
        "/x/%2E./",
        "/x/..//",
        "/x/y/../../",
        "/x//../",
        "/..%2f",
        "/x%2f..%2f",
        "/x/..%5c",
        "/x\\..\\",
        "/\\",
        "/%5c",
        "/%2f",
        "/../",
        "/%2e%2e/",
        "/x/..;/",
        "/x/..;a=b/",
        "/.;/",
        "/x/%2e%2e%3b/",
        "/%252e%252e/",
        "/x/%252e%252e%252f",
        "/%c0%ae%c0%ae/",
        "/x/%c0%ae%c0%ae%c0%af",
        "/%e0%80%af",
        "/%c0%af",
        "/x/..%00/",
        "/x/.%00./",
        "/%20/../",
        "/x/..%20/",
        "/%09/..//",
        "/x/..%c1%9c",
        "/a/b/c/../../../",
        "/.%2f",
        "/x/%2e%2e%5c",
        "/%u002e%u002e/",
    ];
    let admin =
        ["admin", "%61dmin", "a%64min", "admi%6e", "admi%6E", "%61%64%6d%69%6e", "%2561dmin", "admin%00", "ad%6din"];
    let after = [
        "",
        "/",
        "/.",
        "/./",
        "//",
        "/x",
        "/x/",
        "/x/..",
        "/x/../",
        "/%2e",
        "/%2e%2e/admin",
        "%2f",
        "%2fx",
        "%5cx",
        "\\x",
        "/;",
        "/..;/admin",
        "?x",
        "?/../",
        "/?x=/../public",
        "%3f",
        "%23",
        "/%2e%2e%2fadmin",
    ];
    let mut paths = Vec::with_capacity(before.len() * admin.len() * after.len());
    for before in before {
        for admin in admin {
            paths.extend(after.iter().map(|after| format!("{before}{admin}{after}")));
        }
    }
    paths
}

/// One connection, opened again when a refusal has closed it.
struct Prober<'a> {
    gateway: &'a Gateway,
    client: Option<Client>,
}

impl Prober<'_> {
    async fn status(&mut self, target: &str) -> u16 {
        for _ in 0..2 {
            let mut client = match self.client.take() {
                Some(client) => client,
                None => self.gateway.connect().await,
            };
            if let Ok(answer) = client.get(target).await {
                if answer.keeps_alive() {
                    self.client = Some(client);
                }
                return answer.status;
            }
        }
        panic!("{target:?} got no answer");
    }
}

#[tokio::test]
async fn no_spelling_of_a_protected_path_gets_past_its_policy() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::builder(PROTECTED).origin(&origin).start().await;
    let mut prober = Prober { gateway: &gateway, client: None };
    let paths = lattice();
    let mut passed = Vec::new();
    for path in &paths {
        match prober.status(path).await {
            200 => passed.push(path),
            400 | 403 | 404 => {}
            status => panic!("{path:?} was answered {status}"),
        }
    }
    let received = origin.requests();
    assert_eq!(received.len(), passed.len());
    let bypasses: Vec<_> = passed
        .iter()
        .zip(&received)
        .filter(|(_, request)| is_protected(request.path()))
        .map(|(sent, request)| (sent, &request.target))
        .collect();
    assert!(bypasses.is_empty(), "{} of {} spellings reached the origin: {bypasses:?}", bypasses.len(), paths.len());
}

#[tokio::test]
async fn what_is_forwarded_is_canonical_already() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    let mut prober = Prober { gateway: &gateway, client: None };
    for path in lattice() {
        let before = origin.count();
        if prober.status(&path).await != 200 {
            continue;
        }
        let first = origin.request(before).target.clone();
        assert_eq!(prober.status(&first).await, 200, "{path:?} became {first:?}, which is refused");
        assert_eq!(origin.request(before + 1).target, first, "the canonical form of {path:?} is not stable");
    }
}

#[tokio::test]
async fn paths_are_forwarded_in_one_canonical_form() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    for (sent, forwarded) in [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/b/", "/a/b/"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/a/b/.", "/a/b/"),
        ("/a/%2e%2E/b", "/b"),
        ("/%61%2D%5f%7e%2e%2Ez", "/a-_~..z"),
        ("/a%20b", "/a%20b"),
        ("/caf%C3%A9", "/caf%C3%A9"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/a:b@c!$&'()*+,=", "/a:b@c!$&'()*+,="),
        ("/a;b=c", "/a;b=c"),
        ("/a//b", "/a/b"),
        ("/a\"{b}", "/a%22%7Bb%7D"),
        ("/...", "/..."),
        ("/a?b=/../%2f&c=%2e", "/a?b=/../%2f&c=%2e"),
        ("http://test.example/a/../b?c", "/b?c"),
        ("http://test.example", "/"),
    ] {
        let answer = gateway.get(sent).await;
        assert_eq!(answer.status, 200, "{sent:?}: {}", answer.text());
        assert_eq!(origin.request(origin.count() - 1).target, forwarded, "of {sent:?}");
    }
}

#[tokio::test]
async fn paths_without_one_meaning_are_refused() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    for path in [
        "/a%2fb",
        "/a%2Fb",
        "/a%5cb",
        "/a\\b",
        "/a%00",
        "/a%0a",
        "/a%0d%0aX:y",
        "/a%1f",
        "/a%7f",
        "/a%252e",
        "/a%252fb",
        "/%c0%ae",
        "/%c0%af",
        "/%e0%80%af",
        "/%ff",
        "/%c3",
        "/%ed%a0%80",
        "/%f8%88%80%80%80",
        "/..;/a",
        "/a/.;x/b",
        "/%",
        "/%2",
        "/%zz",
        "/a%u002f",
    ] {
        let answer = gateway.get(path).await;
        assert_eq!((answer.status, answer.problem().as_deref()), (400, Some("bad_path")), "{path:?}");
    }
    for target in ["relative", "/a#fragment", "#", "?x"] {
        assert_eq!(gateway.get(target).await.status, 400, "{target:?}");
    }
    assert!(origin.requests().is_empty(), "{:#?}", origin.requests());
}

#[tokio::test]
async fn climbing_above_the_root_stays_at_the_root_or_is_refused() {
    let origin = Origin::named("a").await;
    let gateway = Gateway::before(&origin).await;
    for path in ["/..", "/../..", "/a/../../etc/passwd", "/%2e%2e/x"] {
        if gateway.get(path).await.status == 200 {
            let target = origin.request(origin.count() - 1).target;
            assert!(!target.contains(".."), "{path:?} was forwarded as {target:?}");
        }
    }
}

#[tokio::test]
async fn rewriting_a_prefix_cannot_climb_out_of_it() {
    let origin = Origin::named("a").await;
    let yaml = "
upstreams: { origin: { targets: [{ address: '{{origin}}' }] } }
services:
  s:
    routes:
      public:
        match: { path_prefix: /public }
        filters: [{ rewrite: { strip_prefix: /public, add_prefix: /tenant/1 } }]
        backend: { upstream: origin }
";
    let gateway = Gateway::builder(yaml).origin(&origin).start().await;
    for (sent, forwarded) in [("/public/x", "/tenant/1/x"), ("/public", "/tenant/1"), ("/public/a/../b", "/tenant/1/b")]
    {
        assert_eq!(gateway.get(sent).await.status, 200, "{sent}");
        assert_eq!(origin.request(origin.count() - 1).target, forwarded, "of {sent:?}");
    }
    for path in [
        "/public/../2/x",
        "/public/..%2f2/x",
        "/public//../../2",
        "/public..%2f",
        "/public%2f..%2f2",
        "/public/x/../../../2",
    ] {
        gateway.get(path).await;
    }
    for request in origin.requests() {
        assert!(careless(request.path(), 2).starts_with("/tenant/1"), "{:?}", request.target);
    }
}
