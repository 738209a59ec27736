//! OpenFeature's OFREP provider for Rust against a server that the test has filled.

use std::time::{Duration, Instant};

use open_feature::{Client, EvaluationContext, EvaluationErrorCode, OpenFeature};
use open_feature_ofrep::{OfrepOptions, OfrepProvider};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap};

async fn client(domain: &str, url: &str, token: &str) -> Client {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
    let options = OfrepOptions { base_url: url.to_owned(), headers, ..Default::default() };
    let provider = OfrepProvider::new(options).await.unwrap();
    OpenFeature::singleton_mut().await.set_named_provider(domain, provider).await;
    OpenFeature::singleton().await.create_named_client(domain)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let (url, token) = (variable("OFREP_URL"), variable("OFREP_TOKEN"));
    let asked = client("right", &url, &token).await;
    let acme = EvaluationContext::default()
        .with_targeting_key("t-acme")
        .with_custom_field("environment", "production");
    for (key, value) in [
        ("always", true),
        ("never", false),
        ("pro-only", true),
        ("nobody", false),
        ("staging", false),
        ("some", variable("OFREP_SPLIT") == "true"),
        ("live", true),
    ] {
        let details = asked.get_bool_details(key, Some(&acme), None).await.unwrap();
        let variant = if value { "on" } else { "off" };
        assert_eq!((details.value, details.variant.as_deref()), (value, Some(variant)), "{key}");
    }
    let code = |error: open_feature::EvaluationError| error.code;
    let unknown = asked.get_bool_value("no-such-flag", Some(&acme), None).await;
    assert_eq!(unknown.map_err(code), Err(EvaluationErrorCode::FlagNotFound));
    // This client reports every 400 as this error.
    let keyless = asked.get_bool_value("pro-only", None, None).await;
    assert_eq!(keyless.map_err(code), Err(EvaluationErrorCode::InvalidContext));
    let wrong = client("wrong", &url, "wrong").await;
    let refused = wrong.get_bool_value("always", Some(&acme), None).await;
    assert!(matches!(refused.map_err(code), Err(EvaluationErrorCode::General(_))));

    let changed = reqwest::Client::new()
        .patch(format!("{url}/flags/never"))
        .bearer_auth(&token)
        .header(CONTENT_TYPE, "application/json")
        .body(r#"{"state":"on"}"#)
        .send()
        .await
        .unwrap();
    assert!(changed.status().is_success());
    let began = Instant::now();
    while asked.get_bool_value("never", Some(&acme), None).await != Ok(true) {
        assert!(began.elapsed() < Duration::from_secs(30), "the change is not seen");
    }
    println!("all is well");
}
