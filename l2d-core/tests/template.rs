//! Chat templates against Python's Jinja2 as the transformers library sets it up.

use std::path::Path;

use l2d_core::Error;
use l2d_core::text::{BpeVocabulary, ChatTemplate, Ending, Message, TemplateTokens, TextTokenizer, TokenKind};
use serde::Deserialize;

#[derive(Deserialize)]
struct Renderings {
    date: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Vec<Message>,
    ending: String,
    expected: String,
}

fn tokens() -> TemplateTokens {
    TemplateTokens {
        bos: Some("<|begin_of_text|>".into()),
        eos: Some("<|eot_id|>".into()),
        ..TemplateTokens::default()
    }
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, tokens()).unwrap()
}

fn message_of(error: Error) -> String {
    match error {
        Error::ChatTemplate(text) => text,
        other => panic!("not a template error: {other}"),
    }
}

#[test]
fn renderings_are_hugging_faces() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text/renderings.json");
    let golden: Renderings = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(golden.cases.len() > 30);
    for case in golden.cases {
        let ending = match case.ending.as_str() {
            "closed" => Ending::Closed,
            "generate" => Ending::GenerationPrompt,
            "continue" => Ending::ContinueFinalMessage,
            other => panic!("{other}"),
        };
        let mut template = template(&case.template);
        template.set_date(golden.date.parse().unwrap());
        let rendered = template.render(&case.messages, ending).unwrap();
        assert_eq!(rendered, case.expected, "{} {}", case.name, case.ending);
    }
}

/// The reference's own templates are not part of the golden set; these are ours in the same style.
#[test]
fn parity_chat_template_rendering() {
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(l2d_testkit::parity_dir().join("tasks.json")).unwrap()).unwrap();
    let base = "{% for m in messages %}{{ '### ' ~ ('Question' if m.role == 'user' else 'Answer') ~ ' ###\\n' ~ m.content \
                ~ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '### Answer ###\\n' }}{% endif %}";
    let llama3 = "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\
                  Today Date: {{ strftime_now('%d %b %Y') }}\n\n<|eot_id|>\
                  {% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' \
                  + m['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}\
                  {{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}";
    for (name, source) in [("base_llama", base), ("fixed_date_llama3", llama3)] {
        let case = &golden["chat_template_rendering"][name];
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let tokens = TemplateTokens { bos: Some("<bos>".into()), ..TemplateTokens::default() };
        let template = ChatTemplate::new(source, tokens).unwrap();
        for (ending, key) in
            [(Ending::GenerationPrompt, "rendered_with_generation_prompt"), (Ending::Closed, "rendered_without")]
        {
            assert_eq!(template.render(&messages, ending).unwrap(), case[key].as_str().unwrap(), "{name} {key}");
        }
    }
}

#[test]
fn the_date_is_fixed_unless_it_is_set() {
    let mut template = template("{{ strftime_now('%d %b %Y') }}");
    assert_eq!(template.render(&[], Ending::Closed).unwrap(), "26 Jul 2024");
    template.set_date("2031-01-02".parse().unwrap());
    assert_eq!(template.render(&[], Ending::Closed).unwrap(), "02 Jan 2031");
    let error = message_of(self::template("{{ strftime_now('%!') }}").render(&[], Ending::Closed).unwrap_err());
    assert!(error.contains("strftime_now"), "{error}");
}

#[test]
fn what_the_template_raises_is_the_error() {
    let template = template("{% if messages | length != 2 %}{{ raise_exception('two messages, please') }}{% endif %}");
    let error = message_of(template.render(&[Message::user("x")], Ending::Closed).unwrap_err());
    assert!(error.contains("two messages, please"), "{error}");
}

#[test]
fn broken_templates_are_errors() {
    for source in ["{% for m in messages %}", "{{ 1 + }}", "{% nonsense %}", "{{ 'open }}"] {
        let error = message_of(ChatTemplate::new(source, tokens()).unwrap_err());
        assert!(error.contains("line") || error.contains("chat_template"), "{source}: {error}");
    }
    for source in ["{{ missing.attribute }}", "{{ messages[0].content.nonsense() }}", "{{ 'a' | nonsense }}"] {
        let rendered =
            ChatTemplate::new(source, tokens()).and_then(|t| t.render(&[Message::user("x")], Ending::Closed));
        assert!(!message_of(rendered.unwrap_err()).is_empty());
    }
}

#[test]
fn a_template_that_would_not_end_is_stopped() {
    let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}";
    let doubles =
        "{% set ns = namespace(s='x') %}{% for a in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}";
    for source in [loops, doubles] {
        let started = std::time::Instant::now();
        assert!(matches!(template(source).render(&[], Ending::Closed), Err(Error::ChatTemplate(_))));
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    }
}

#[test]
fn a_final_message_can_be_continued_only_where_it_is_rendered() {
    let user_only = template("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}");
    let chat = [Message::user("q"), Message::assistant("The answer is")];
    let error = message_of(user_only.render(&chat, Ending::ContinueFinalMessage).unwrap_err());
    assert!(error.contains("continue the final message"), "{error}");
    let error = message_of(user_only.render(&[], Ending::ContinueFinalMessage).unwrap_err());
    assert!(error.contains("no messages"), "{error}");
    let shouting = template("{% for m in messages %}{{ m.content | replace('answer', 'ANSWER') }}{% endfor %}");
    assert!(shouting.render(&chat, Ending::ContinueFinalMessage).is_err());

    let plain = template("{% for m in messages %}<{{ m.content }}>{% endfor %}");
    let rendered = |content: &str| plain.render(&[Message::assistant(content)], Ending::ContinueFinalMessage).unwrap();
    assert_eq!(rendered("a  "), "<a  ");
    assert_eq!(rendered(""), "<");
}

#[test]
fn tokens_the_template_writes_must_exist() {
    let spelt = ["<|im_start|>", "<|im_end|>", "x"].map(String::from);
    let tokenizer = TextTokenizer::from_bpe(&BpeVocabulary {
        pre_tokenizer: "gpt-2",
        tokens: &spelt,
        kinds: vec![TokenKind::Control, TokenKind::Control, TokenKind::Normal],
        merges: &[],
        bos_token_id: None,
        add_bos: None,
    })
    .unwrap();
    let check = |source: &str| template(source).check_tokens(&tokenizer);
    check("{{ '<|im_start|>' ~ x ~ '<|im_end|>' }} {% if 1 <|2 %}{% endif %}".replace("<|2", "< 2").as_str()).unwrap();
    let error = check("<|im_start|><|eot_id|>{{ '<|end_header_id|>' }}<|eot_id|>").unwrap_err();
    let Error::Tokenizer(text) = &error else { panic!("{error}") };
    assert!(text.contains("writes <|end_header_id|>, <|eot_id|>,"), "{text}");
    // Zephyr's style: roles are plain text, turns end with the tokenizer's own end token.
    check("<|user|>\n{{ messages[0].content }}{{ eos_token }}").unwrap();
    check("{{ '<|' ~ role ~ '|>' }}").unwrap();
}
