//! Failures between the poller and Authentik: refusals, faults, addresses.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use dezky_core::{IngestSource, PullLimits, Runtime};
use dezky_ingest::authentik::AuthentikSource;
use dezky_ingest::testkit::{AuthentikDouble, Fault, authentik_event};

use crate::authentik::{MINUTE, Setup};
use crate::run;

#[test]
fn a_refused_token_is_not_tried_again_at_once_and_recovers() {
    run(async {
        let setup = Setup::with_events(5, MINUTE).await;
        setup.double.set_token("rotated");
        let mut pump = setup.pump();
        for _ in 0..20 {
            let error = pump.tick().await.unwrap_err();
            assert_eq!(error.code(), "auth_failed");
            assert!(!error.to_string().contains("double-token"));
            setup.runtime.advance(Duration::from_secs(14));
        }
        assert_eq!(setup.double.polls(), 1, "in nearly five minutes one request");
        assert_eq!(pump.status().last_error.unwrap().code, "auth_failed");
        setup.double.set_token("double-token");
        setup.runtime.advance(MINUTE);
        assert_eq!(pump.tick().await.unwrap().taken.stored, 5);
        setup.double.set_permission(false);
        assert_eq!(pump.tick().await.unwrap_err().code(), "auth_failed");
    });
}

#[test]
fn faults_of_the_server_are_got_over() {
    run(async {
        let faults = [
            Fault::Html(502),
            Fault::Html(503),
            Fault::Html(200),
            Fault::Text(502),
            Fault::Text(503),
            Fault::Starting,
            Fault::Truncated,
            Fault::Reset,
            Fault::Redirect("http://127.0.0.1:9/".into()),
        ];
        for fault in faults {
            let setup = Setup::with_events(150, MINUTE).await;
            let mut pump = setup.pump();
            setup.double.fail_next(2, fault.clone());
            for _ in 0..2 {
                assert_eq!(
                    pump.tick().await.unwrap_err().code(),
                    "source_unavailable",
                    "{fault:?}"
                );
            }
            assert_eq!(setup.double.polls(), 2, "{fault:?}");
            setup.drain(&mut pump).await;
            setup.assert_all(0..150).await;
        }
    });
}

#[test]
fn who_is_throttled_waits_as_long_as_told() {
    run(async {
        let setup = Setup::with_events(5, MINUTE).await;
        setup.double.fail_next(1, Fault::Throttled(Some(120)));
        let mut pump = setup.pump();
        for _ in 0..12 {
            assert_eq!(pump.tick().await.unwrap_err().code(), "source_unavailable");
            setup.runtime.advance(Duration::from_secs(9));
        }
        assert_eq!(setup.double.polls(), 1);
        setup.runtime.advance(Duration::from_secs(13));
        assert_eq!(pump.tick().await.unwrap().taken.stored, 5);
    });
}

#[test]
fn who_is_throttled_until_a_date_waits_until_then() {
    run(async {
        let setup = Setup::with_events(5, MINUTE).await;
        let now = UNIX_EPOCH
            + Duration::from_millis(u64::try_from(setup.runtime.now().as_millis()).unwrap());
        let date = httpdate::fmt_http_date(now + MINUTE * 2);
        setup.double.fail_next(1, Fault::ThrottledUntil(date));
        let mut pump = setup.pump();
        for _ in 0..12 {
            assert_eq!(pump.tick().await.unwrap_err().code(), "source_unavailable");
            setup.runtime.advance(Duration::from_secs(9));
        }
        assert_eq!(setup.double.polls(), 1);
        setup.runtime.advance(Duration::from_secs(13));
        assert_eq!(pump.tick().await.unwrap().taken.stored, 5);

        // A past or invalid date counts as absent: the wait is a minute.
        for said in [httpdate::fmt_http_date(now - Duration::from_secs(9)), "soon".to_owned()] {
            let before = setup.double.polls();
            setup.double.fail_next(1, Fault::ThrottledUntil(said));
            pump.tick().await.unwrap_err();
            setup.runtime.advance(Duration::from_secs(59));
            pump.tick().await.unwrap_err();
            assert_eq!(setup.double.polls() - before, 1);
            setup.runtime.advance(Duration::from_secs(1));
            pump.tick().await.unwrap();
        }
    });
}

#[test]
fn a_token_that_is_rotated_in_a_backlog_loses_nothing_once_it_is_fixed() {
    run(async {
        let setup = Setup::with_events(1_500, MINUTE).await;
        let mut pump = setup.pump();
        setup.double.set_token_before_request(4, "rotated");
        assert_eq!(pump.tick().await.unwrap_err().code(), "auth_failed");
        let taken = setup.stored().await.len();
        assert!(taken > 0, "what came before stays");
        for _ in 0..3 {
            setup.runtime.advance(MINUTE);
            setup.double.insert(authentik_event(
                5_000 + setup.double.len() as u64,
                &setup.ago(Duration::ZERO),
            ));
            pump.tick().await.unwrap_err();
        }
        assert_eq!(setup.stored().await.len(), taken);
        setup.double.set_token("double-token");
        setup.runtime.advance(MINUTE * 5);
        setup.drain(&mut pump).await;
        let ids = setup.ids().await;
        assert_eq!(ids.len(), 1_503);
        setup.assert_all(0..1_500).await;
    });
}

/// Advances the clock by a minute once the request has arrived and its caller sleeps.
async fn a_minute_passes(setup: &Setup) {
    while setup.runtime.sleeping() == 0 || setup.double.requests().is_empty() {
        tokio::task::yield_now().await;
    }
    setup.runtime.advance(Duration::from_secs(61));
}

#[test]
fn a_server_that_does_not_answer_is_given_up_on() {
    run(async {
        for fault in [
            Fault::Slow(Duration::from_hours(1)),
            // The response begins, but its body never ends.
            Fault::SlowBody(Duration::from_hours(1)),
        ] {
            let setup = Setup::with_events(5, MINUTE).await;
            setup.double.fail_next(1, fault);
            let mut pump = setup.pump();
            let (tick, ()) = tokio::join!(pump.tick(), a_minute_passes(&setup));
            assert!(tick.unwrap_err().to_string().contains("60s"));
            assert_eq!(pump.tick().await.unwrap().taken.stored, 5);
        }
    });
}

#[test]
fn a_redirect_is_not_followed_with_the_token() {
    run(async {
        let setup = Setup::with_events(5, MINUTE).await;
        let elsewhere = AuthentikDouble::builder().start().await.unwrap();
        setup.double.fail_next(1, Fault::Redirect(format!("{}/api/v3/", elsewhere.url())));
        let error = setup.pump().tick().await.unwrap_err();
        assert!(error.to_string().contains("redirect"), "{error}");
        assert!(elsewhere.requests().is_empty());
    });
}

#[test]
fn a_wrong_address_is_named() {
    run(async {
        let setup = Setup::new().await;
        let mut config = setup.config();
        config.base_url.push_str("/api/v3");
        let mut source = AuthentikSource::new(config, Arc::new(setup.runtime.clone())).unwrap();
        let error = source.pull(None, PullLimits::default()).await.unwrap_err();
        assert!(error.to_string().contains("base URL"), "{error}");
    });
}
