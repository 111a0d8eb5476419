"""Makes chat_template.json: conversations rendered by the reference.

transformers==4.51.3, Jinja2==3.1.6

    python tests/golden/chat_template.py src/text/qwen2_5_vl.jinja tests/golden/chat_template.json
"""

import json
import sys
import time

import jinja2
import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), **SPECIALS)


def text(value):
    return {"type": "text", "text": value}


IMAGE, VIDEO = {"type": "image"}, {"type": "video"}
QUESTION = "What happens?\n\nA. <b>it's</b> \"red\"\nB. 北京 🎬  "
CONVERSATIONS = {
    "text only": [{"role": "user", "content": [text(QUESTION)]}],
    "video": [{"role": "user", "content": [VIDEO, text(QUESTION)]}],
    "image and video interleaved": [
        {"role": "user", "content": [text("first "), IMAGE, text(" then"), VIDEO, VIDEO, text("\n"), IMAGE]}
    ],
    "system given": [
        {"role": "system", "content": [text("Be brief.")]},
        {"role": "user", "content": [VIDEO, text(QUESTION)]},
    ],
    "several turns": [
        {"role": "user", "content": [VIDEO, text("What to look for?")]},
        {"role": "assistant", "content": [text("<query>a red car</query>")]},
        {"role": "user", "content": [VIDEO, text("Answer.")]},
        {"role": "assistant", "content": [text("<answer>A</answer>\n")]},
    ],
    "empty content": [{"role": "user", "content": []}, {"role": "assistant", "content": [text("")]}],
    "plain strings": [{"role": "system", "content": " S "}, {"role": "user", "content": "U\n"}],
}

CHAT = [
    {"role": "system", "content": "  Be brief.\n"},
    {"role": "user", "content": "Hello <b>'you'</b>, \"all\" of 北京"},
    {"role": "assistant", "content": "Reasoning</think>Yes.", "tool_calls": [{"name": "f", "arguments": {"b": 1, "a": [1.0, None, True]}}]},
    {"role": "user", "content": "Why?"},
]

# template, extra variables
FEATURES = {
    "loop variables": ("{% for m in messages %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.length }}{{ loop.first }}{{ loop.last }} {{ m.role }}{% if not loop.last %}, {% endif %}{% endfor %}", {}),
    "trim and lstrip blocks": ("<<\n  {% if true %}\n  kept\n    {% endif %}\n  {%- for m in messages %}\n    [{{ m['role'] }}]\n  {%- endfor %}\n\n>>\n", {}),
    "lstrip kept by plus": ("a\n  {%+ if true %}b{% endif %}\nc {# note #}\n  {# line #}\nd", {}),
    "namespace": ("{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.n = ns.n + 1 %}{% set ns.last = m.content %}{% endif %}{% endfor %}{{ ns.n }}:{{ ns.last }}", {}),
    "defined and none tests": ("{{ tools is defined }} {{ tools is none }} {{ nothing is defined }} {{ nothing is none }} {{ nothing }}|{{ messages[0].tool_calls is defined }} {{ messages[2].tool_calls is defined and messages[2].tool_calls }}", {}),
    "type tests": ("{% for v in values %}{{ v is string }}{{ v is mapping }}{{ v is iterable }}{{ v is sequence }}{{ v is number }}{{ v is integer }}{{ v is float }}{{ v is boolean }}{{ v is none }};{% endfor %}", {"values": ["s", 1, 1.5, True, None, [1], {"a": 1}]}),
    "python spelling of values": ("{% for v in values %}{{ v }}|{{ v | string }}\n{% endfor %}", {"values": [True, False, None, 1, 1.0, 0.1, -0.0, 1e16, 1e-7, 1.5e300, 123456789.125, [1, "a'b", 'q"', None, {"k": [True]}], {"a": 1, "b": "x\n"}, "plain"]}),
    "tojson": ("{% for v in values %}{{ v | tojson }}\n{{ v | tojson(indent=2) }}\n{{ v | tojson(sort_keys=true, separators=(',', ':')) }}\n{{ v | tojson(ensure_ascii=true) }}\n{% endfor %}", {"values": [CHAT[2], "a\"\\/\b\f\n\r\t\x01\x7f<>&'é🎬", [], {}, [[], {"z": {}, "a": [1, 2.5, 1e-9]}], None, True]}),
    "string methods": ("{% set s = messages[0].content %}[{{ s.strip() }}][{{ s.lstrip() }}][{{ s.rstrip() }}][{{ s.upper() }}][{{ s.title() }}][{{ s.strip().split(' ') }}][{{ s.split() | join('-') }}][{{ s.replace('e', 'E') }}][{{ s.strip().startswith('Be') }}][{{ s.strip().endswith('.') }}][{{ s.find('b') }}][{{ 'xxaxx'.strip('x') }}][{{ 'a,b,c'.split(',', 1) }}][{{ 'a,b,c'.rsplit(',', 1) }}][{{ 'a-b-c'.partition('-')[0] }}][{{ 'a-b-c'.rpartition('-')[2] }}][{{ 'prefix-x'.removeprefix('prefix-') }}][{{ 'x.py'.removesuffix('.py') }}]", {}),
    "reasoning split": ("{% for m in messages %}{% if m.role == 'assistant' %}{% set content = m.content %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}{{ content }}{% endif %}{% endfor %}", {}),
    "filters": ("{{ messages | length }} {{ messages[0].content | trim }} {{ 'ABC' | lower }} {{ 'abc' | upper }} {{ 'abc' | capitalize }} {{ [3, 1, 2] | sort | join(',') }} {{ messages | map(attribute='role') | join(' ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='role') | list }} {{ nothing | default('d') }} {{ 'a' | replace('a', 'b') }} {{ [1, 2] | first }} {{ [1, 2] | last }} {{ 'abc' | list }} {% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %} {{ '3' | int + 1 }}", {}),
    "slices and indexing": ("{{ messages[1:] | length }} {{ messages[:-1] | length }} {{ messages[-1].role }} {{ messages[::-1][0].role }} {{ 'abcdef'[1:3] }} {{ 'abc'[-1] }} {{ messages[0]['role'] }}", {}),
    "mapping methods": ("{% for k, v in messages[2].tool_calls[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0].get('role') }}{{ messages[0].get('x', 'none') }}{{ messages[0].keys() | list }}", {}),
    "operators": ("{{ 1 + 2 * 3 }} {{ 7 // 2 }} {{ 7 % 3 }} {{ 7 / 2 }} {{ 2 ** 3 }} {{ 'a' ~ 1 ~ 'b' }} {{ 'a' + 'b' }} {{ 1 < 2 and not (2 < 1) }} {{ 'x' if false else 'y' }} {{ 'e' in 'hello' }} {{ 'user' in ['user'] }} {{ 'z' not in 'hello' }} {{ (messages | length) % 2 == 0 }}", {}),
    "set block and macro": ("{% macro turn(role, text='none') %}<{{ role }}>{{ text }}</{{ role }}>{% endmacro %}{% set joined %}{{ turn('user', 'hi') }}{{ turn('x') }}{% endset %}{{ joined }}{{ joined | length }}", {}),
    "generation blocks": ("{% for m in messages %}\n{% if m.role == 'assistant' %}\n  {% generation %}\n{{ m.content }}{{ eos_token }}\n  {%- endgeneration -%}\n{% else %}\n{{ m.content }}\n{% endif %}\n{% endfor %}", {}),
    "special tokens": ("{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ eos_token }}{% endfor %}{% if add_generation_prompt %}>>{% endif %}", {}),
    "escapes in literals": ("{{ '<|im_start|>' + messages[0]['role'] + '\\n' + \"tab\\tquote\\\"\" }}{{ 'it\\'s' }}", {}),
    "no html escape": ("{{ messages[1].content }}{{ '<&>' }}", {}),
    "trailing newline dropped": ("a\n\n", {}),
    "tuples": ("{% for a, b in [('x', 1), ('y', 2)] %}{{ a }}{{ b }}{% endfor %}{% for i in range(3) %}{{ i }}{% endfor %}", {}),
    "loop filter and else": ("{% for m in messages if m.role == 'tool' %}{{ m.role }}{% else %}none{% endfor %}", {}),
    "raised": ("{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('roles must alternate: ' + m.role) }}{% endif %}{% endfor %}", {}),
    "undefined attribute of undefined": ("{{ nothing.attribute }}", {}),
}

FORMATS = "%Y-%m-%d %H:%M:%S %y %B %b %A %a %j %I %p %e %F %T %%"
SECONDS = [0, 951782400, 951868800, 1709164799, 1709164800, 1735689599, 1735689600, 4102444799, -1, -2208988800, 1763713494]


def render(template, messages, **variables):
    try:
        return {"text": TOKENIZER.apply_chat_template(messages, chat_template=template, tokenize=False, **variables)}
    except jinja2.exceptions.TemplateError as error:
        return {"error": str(error)}


def main(template_path, out):
    qwen = open(template_path, encoding="utf-8").read()
    golden = {
        "versions": {"transformers": transformers.__version__, "jinja2": jinja2.__version__},
        "specials": SPECIALS,
        "qwen": [],
        "features": [],
        "strftime": {
            "format": FORMATS,
            "cases": [[seconds, time.strftime(FORMATS, time.gmtime(seconds))] for seconds in SECONDS],
        },
    }
    for name, messages in CONVERSATIONS.items():
        for variables in ({"add_generation_prompt": True}, {"add_generation_prompt": False}, {"add_generation_prompt": True, "add_vision_id": True}):
            result = render(qwen, messages, **variables)
            golden["qwen"].append({"name": name, "variables": {"messages": messages, **variables}, **result})
    for name, (template, extra) in FEATURES.items():
        variables = {"add_generation_prompt": True, **extra}
        result = render(template, CHAT, **variables)
        golden["features"].append({"name": name, "template": template, "variables": {"messages": CHAT, **variables}, **result})
    with open(out, "w", encoding="utf-8") as file:
        json.dump(golden, file, ensure_ascii=False, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
