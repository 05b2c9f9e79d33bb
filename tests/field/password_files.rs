//! `~/.pgpass` as it is found: unescaped colons, escaped stars, stray backslashes, Windows' ends of lines.
//! Never judged by reading libpq's source: it is asked. Invariant: for each line and each wish,
//! walmgr has the password that psql has.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use walmgr::test_support::pg::conninfo::{Environment, parse};
use walmgr::test_support::pg::sql::{Limits, Session};

use crate::support::dice::Dice;
use crate::support::libpq::Libpq;
use crate::support::{Cluster, TempDir};

/// Host, database and user of a connection.
type Wish<'a> = [&'a str; 3];

/// A file of its own for each text, and what the options say of it.
fn options(home: &TempDir, number: usize, text: &[u8], [host, database, user]: Wish<'_>) -> String {
    let file = home.write(&format!("passwords.{number}"), text);
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let quoted = |value: &str| format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
    format!(
        "passfile={} hostaddr=127.0.0.1 port=1 host={} dbname={} user={}",
        file.display(),
        quoted(host),
        quoted(database),
        quoted(user)
    )
}

fn assert_as_libpq(libpq: &Libpq, cases: &[(Vec<u8>, Wish<'_>)]) -> usize {
    let home = TempDir::new();
    let strings: Vec<String> = (cases.iter().enumerate())
        .map(|(number, (text, wish))| options(&home, number, text, *wish))
        .collect();
    let answers = libpq.passwords(&strings);
    assert_eq!(answers.len(), cases.len());
    let mut found_any = 0;
    for ((string, expected), (text, wish)) in strings.iter().zip(answers).zip(cases) {
        let info = parse(string, &Environment::default()).unwrap();
        let found = info.password(&info.places[0], &info.database);
        let text = String::from_utf8_lossy(text);
        assert_eq!(
            found.clone().unwrap_or_default(),
            expected,
            "{text:?} for {wish:?}"
        );
        found_any += usize::from(found.is_some());
    }
    found_any
}

#[test]
fn fault_140_each_line_of_a_password_file_is_read_as_libpq_reads_it() {
    for major in crate::support::USUAL_AND_17 {
        let libpq = skip_unless!(Libpq::of(major));
        let plain: Wish<'_> = ["h", "d", "u"];
        let cases: Vec<(Vec<u8>, Wish<'_>)> = [
            ("h:1:d:u:secret", plain),
            ("*:*:*:*:secret", plain),
            ("\\*:*:*:*:secret", plain),
            ("\\*:*:*:*:secret", ["*", "d", "u"]),
            ("*:*:*:u*:secret", plain),
            ("*:*:*:u\\:secret", plain),
            ("h:1:d:u:sec\\ret\\", plain),
            ("h:1:d:u:sec\\\\ret\\\\", plain),
            ("h:1:d:u:sec\\:ret", plain),
            ("h:1:d:u:sec:ret", plain),
            ("h:1:d:u:secret\r\n", plain),
            ("h:1:d:u:secret\r\r\n", plain),
            ("h:1:d:u:secret \n", plain),
            ("h:1:d:u:\nh:1:d:u:second", plain),
            ("h:1:d:u\nh:1:d:u:second", plain),
            (" h:1:d:u:secret", plain),
            ("#h:1:d:u:secret\nh:1:d:u:second", plain),
            ("\u{feff}h:1:d:u:secret\nh:1:d:u:second", plain),
            ("::1:1:d:u:secret", ["::1", "d", "u"]),
            ("\\:\\:1:1:d:u:secret", ["::1", "d", "u"]),
            ("h:1:d:a:b:secret", ["h", "d", "a:b"]),
            ("h:1:d:a\\\\b:secret", ["h", "d", "a\\b"]),
            ("h:1:d:a\\b:secret", ["h", "d", "a\\b"]),
            ("h:1:d:\\u:secret", plain),
            ("H:1:d:u:secret", plain),
            ("127.0.0.1:1:d:u:secret", plain),
            ("h:01:d:u:secret", plain),
            ("*:*:replication:*:secret", plain),
            ("", plain),
            ("\r\n\r\n:::::\nh:1:d:u:second", plain),
        ]
        .map(|(text, wish)| (text.as_bytes().to_vec(), wish))
        .into_iter()
        .chain([(b"h:1:d:u:caf\xe9".to_vec(), plain)])
        .collect();
        assert_as_libpq(&libpq, &cases);
        let mut dice = Dice::thrown("lines of a password file");
        let words = [
            "h", "*", "\\*", "a:b", "a\\:b", "\\h", "h\\", "::1", "", "\\\\", "*h",
        ];
        let passwords = ["secret", "se:cret", "s\\:\\\\", "\\", "\r"];
        let ports = ["1", "*", "\\1"];
        let wishes = ["h", "h", "*", "a:b", "a", "::1", "\\", "h*"];
        let mut random = Vec::new();
        for _ in 0..600 {
            let mut text = String::new();
            for _ in 0..dice.below(3) + 1 {
                for field in 0..4 {
                    let some = if field == 1 { &ports[..] } else { &words[..] };
                    // Chance would seldom find a line that fits in all.
                    let word = if dice.once_in(2) {
                        "*"
                    } else {
                        dice.choose::<&str>(some)
                    };
                    text.push_str(word);
                    text.push(if dice.once_in(40) { '\\' } else { ':' });
                }
                text.push_str(dice.choose::<&str>(&passwords));
                text.push('\n');
            }
            let mut wish = || *dice.choose::<&str>(&wishes);
            random.push((text.into_bytes(), [wish(), wish(), wish()]));
        }
        // Chance has to hit now and then, or nothing was compared.
        let hits = assert_as_libpq(&libpq, &random);
        assert!(hits > 10, "{hits} of {:?}", random.first());
    }
}

#[tokio::test]
async fn fault_140_a_server_takes_the_password_of_a_line_that_psql_would_use() {
    let libpq = skip_unless!(Libpq::of(15));
    let cluster = Cluster::builder().start();
    cluster.psql("CREATE ROLE \"a:*\" SUPERUSER LOGIN PASSWORD 'sec\\re:t\\'");
    fs::write(
        cluster.data().join("pg_hba.conf"),
        "local all postgres trust\nhost all all all scram-sha-256\n",
    )
    .unwrap();
    cluster.reload();
    let (home, nobody) = (TempDir::new(), Environment::default());
    for (text, is_let_in) in [
        ("*:*:*:a\\:\\*:sec\\\\re\\:t\\", true),
        ("*:*:*:a\\:\\*:sec\\\\re\\:t\\\\", true),
        ("*:*:*:a:*:sec\\\\re\\:t\\", true),
        ("*:*:*:\\*:sec\\\\re\\:t\\", false),
        ("*:*:*:a\\:\\*:sec\\\\re:t\\", false),
        ("*:*:*:a\\:\\*:sec\\re\\:t\\", false),
    ] {
        let string = options(&home, 0, text.as_bytes(), ["localhost", "postgres", "a:*"]);
        let string = string.replace("port=1", &format!("port={}", cluster.port()));
        let theirs = &libpq.connect(std::slice::from_ref(&string))[0];
        let ours = Session::connect_from(&string, &nobody, Limits::default()).await;
        let said = ours.as_ref().err().map(ToString::to_string);
        assert_eq!(theirs.is_ok(), is_let_in, "{text}: libpq: {theirs:?}");
        assert_eq!(ours.is_ok(), is_let_in, "{text}: {said:?}");
    }
}
