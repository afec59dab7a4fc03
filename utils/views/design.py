"""The design: colours and the one style sheet of everything that is drawn. docs/DESIGN.md describes it.

Every colour is mixed from a fixed hue and the text colour of the page (JupyterLab's, Colab's, or whatever is inherited), so
light and dark themes need neither a second palette nor a way to tell which one is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from utils.views.html import Html, element, joined, style_sheet

#: The text colour: JupyterLab's, Colab's, or the inherited one.
INK = "var(--jp-ui-font-color1,var(--colab-primary-text-color,currentColor))"


@dataclass(frozen=True)
class Token:
    """A colour of the design: `share` percent of `hue`, the rest is the page's text colour.

    Attributes:
        hue: a hex colour; None: transparent, so that the text colour is diluted.
        use: what it is for.
    """

    hue: str | None
    share: int
    use: str

    @property
    def css(self) -> str:
        """Its value in a style sheet."""
        if self.hue is None:
            return f"color-mix(in srgb,var(--tb-ink) {100 - self.share}%,transparent)"
        return f"color-mix(in srgb,{self.hue} {self.share}%,var(--tb-ink))"


#: Name -> token. In a style sheet `--tb-NAME`.
TOKENS: Mapping[str, Token] = {
    "soft": Token(None, 28, "secondary text: help, labels, units"),
    "line": Token(None, 82, "borders and rules"),
    "card": Token(None, 97, "background of cards"),
    "accent": Token("#4285f4", 66, "current step, links, focus, running"),
    "good": Token("#1f9d45", 68, "passed, done"),
    "warn": Token("#c07800", 68, "warning"),
    "bad": Token("#ee5a5f", 66, "failed, destructive"),
    "train": Token("#4285f4", 66, "curves of the training loss"),
    "val": Token("#df7a14", 72, "curves of the validation loss"),
    "base": Token("#9669ec", 60, "baselines and the gradient norm"),
}

#: Background of the primary button; its label is white in both themes.
PRIMARY = "#1f66e5"

_CSS = """
.tb{font:13px/1.45 var(--jp-ui-font-family,system-ui,sans-serif);color:var(--tb-ink);max-width:1120px;
overflow-wrap:break-word;container-type:inline-size}
.tb.tb-panel{container-type:normal;overflow:visible}
.tb h3,.tb .tb-title{font-size:15px;font-weight:600;line-height:1.4;margin:0;padding:0;color:inherit}
.tb .tb-sub,.tb .tb-soft,.tb .tb-help{color:var(--tb-soft)}
.tb .tb-sub{margin:2px 0 10px}
.tb .tb-help{font-size:12px;line-height:1.4}
.tb p{margin:0}
.tb a{color:var(--tb-accent)}
.tb .tb-row{display:flex;flex-wrap:wrap;gap:4px 12px;align-items:center}
.tb .tb-right{margin-left:auto}
.tb .tb-stack{display:flex;flex-direction:column;gap:10px}
.tb .tb-split{display:flex;flex-wrap:wrap;gap:10px}
.tb .tb-wide{flex:3 1 440px;min-width:0}
.tb .tb-narrow{flex:2 1 300px;min-width:0}
.tb .tb-card{border:1px solid var(--tb-line);border-radius:8px;background:var(--tb-card);padding:10px 14px}
.tb .tb-card .tb-title{font-size:13px;margin-bottom:4px}
.tb .tb-kpis,.tb .tb-minis{display:flex;flex-wrap:wrap;gap:8px}
.tb .tb-kpi,.tb .tb-mini{flex:1 1 clamp(15%,calc((640px - 100%)*999),30%);box-sizing:border-box;min-width:0}
.tb .tb-mini{flex-basis:clamp(20%,calc((640px - 100%)*999),44%)}
.tb .tb-kpi{border:1px solid var(--tb-line);border-radius:8px;background:var(--tb-card);padding:6px 10px}
.tb .tb-kpi span{display:block;color:var(--tb-soft);font-size:11px}
.tb .tb-kpi b{font-size:17px;font-weight:600;line-height:1.35;font-variant-numeric:tabular-nums}
.tb .tb-kpi .tb-long{font-size:13px;line-height:1.75;overflow-wrap:anywhere}
.tb .tb-kpi small{display:block;font-size:11px;color:var(--tb-soft);overflow-wrap:anywhere}
.tb .tb-mini{padding:7px 10px 5px}
.tb .tb-mini b{display:block;font-weight:600;font-size:15px;font-variant-numeric:tabular-nums}
.tb .tb-pill{display:inline-flex;gap:6px;align-items:center;padding:0 10px;border-radius:99px;font-size:12px;
font-weight:600;line-height:20px;white-space:nowrap;color:var(--tb-c);border:1px solid var(--tb-c);
background:color-mix(in srgb,var(--tb-c) 9%,transparent)}
.tb .tb-icon{color:var(--tb-c);font-weight:700}
.tb .tb-pass{--tb-c:var(--tb-good)}
.tb .tb-warn{--tb-c:var(--tb-warn)}
.tb .tb-fail{--tb-c:var(--tb-bad)}
.tb .tb-none{--tb-c:var(--tb-soft)}
.tb .tb-run{--tb-c:var(--tb-accent)}
.tb progress{display:block;width:100%;height:6px;border:0;border-radius:3px;overflow:hidden;background:var(--tb-line);
appearance:none;accent-color:var(--tb-accent)}
.tb progress::-webkit-progress-bar{background:var(--tb-line)}
.tb progress::-webkit-progress-value{background:var(--tb-accent);border-radius:3px}
.tb progress::-moz-progress-bar{background:var(--tb-accent);border-radius:3px}
.tb svg{display:block;width:100%;height:auto;color:inherit;overflow:visible}
.tb .tb-plot{overflow-x:auto}
.tb .tb-empty{opacity:.7}
body:has(.tb-dashboard) .tb-copy{display:none}
.tb .tb-c-train{stroke:var(--tb-train)}
.tb .tb-c-val{stroke:var(--tb-val)}
.tb .tb-c-base{stroke:var(--tb-base)}
.tb .tb-c-good{stroke:var(--tb-good)}
.tb .tb-c-soft{stroke:var(--tb-soft)}
.tb .tb-f-train{fill:var(--tb-train)}
.tb .tb-f-val{fill:var(--tb-val)}
.tb .tb-f-base{fill:var(--tb-base)}
.tb .tb-f-soft{fill:var(--tb-soft)}
.tb .tb-c-line{stroke:var(--tb-line)}
.tb .tb-f-line{fill:var(--tb-line)}
.tb table{border-collapse:collapse;width:100%;margin:0;font:inherit;font-variant-numeric:tabular-nums;color:inherit;
background:none;border:0;table-layout:auto}
.tb caption{text-align:left;font-size:15px;font-weight:600;padding:0 0 4px;color:inherit}
.tb .tb-card caption{font-size:13px}
.tb th,.tb td{text-align:left;vertical-align:top;padding:5px 14px 5px 0;border:0;border-bottom:1px solid var(--tb-line);
background:none;color:inherit;max-width:none;white-space:normal}
.tb thead th{font-weight:500;color:var(--tb-soft)}
.tb tbody th{font-weight:600}
.tb tr,.tb tbody tr,.tb tbody tr:hover{background:none;text-align:left}
.tb tbody tr:last-child th,.tb tbody tr:last-child td{border-bottom:0}
.tb .tb-table th,.tb .tb-table td{white-space:pre-wrap}
.tb .tb-pairs th{width:1%;white-space:nowrap;padding-right:28px}
.tb .tb-bars{max-width:720px}
.tb .tb-bars td:last-child{width:50%;vertical-align:middle;padding-right:0}
.tb .tb-bars thead th:nth-child(2){text-align:right}
.tb .tb-bar{height:8px;border-radius:4px;background:var(--tb-line);overflow:hidden}
.tb .tb-bar div{height:100%;border-radius:4px;background:var(--tb-accent)}
.tb .tb-number{text-align:right;white-space:nowrap}
.tb .tb-scroll{overflow-x:auto}
.tb .tb-narrow th,.tb .tb-narrow td{padding-right:8px}
.tb .tb-narrow th:last-child,.tb .tb-narrow td:last-child{padding-right:0}
.tb pre{white-space:pre-wrap;overflow-wrap:anywhere;word-break:normal;margin:0;padding:0;color:inherit;background:none;border:0;
font:12px/1.5 var(--jp-code-font-family,ui-monospace,monospace)}
.tb .tb-sample{margin:0 0 8px;padding:0 0 0 10px;border-left:2px solid var(--tb-line)}
.tb .tb-sample b{font-weight:600}
.tb .tb-pair{display:grid;gap:4px 14px;grid-template-columns:repeat(auto-fit,minmax(min(100%,200px),1fr))}
.tb .tb-list{list-style:none;margin:0;padding:0}
.tb .tb-list li{margin:0;padding:3px 0;border-bottom:1px solid var(--tb-line)}
.tb .tb-list li:last-child{border-bottom:0}
.tb details{margin-top:6px}
.tb summary{cursor:pointer;color:var(--tb-soft)}
.tb .tb-alert{border:1px solid var(--tb-bad);border-left-width:4px;border-radius:6px;padding:6px 12px;margin:4px 0;
background:color-mix(in srgb,var(--tb-bad) 7%,transparent)}
.tb .tb-facts{columns:300px;column-gap:32px;margin:0}
.tb .tb-sections{columns:320px;column-gap:10px}
.tb .tb-sections .tb-card{break-inside:avoid;margin:0 0 10px}
.tb .tb-facts div:last-child{border-bottom:0}
.tb .tb-facts div{display:flex;gap:12px;justify-content:space-between;break-inside:avoid;padding:3px 0;
border-bottom:1px solid var(--tb-line)}
.tb .tb-facts dt{flex:none;width:auto;max-width:60%;margin:0;float:none;color:var(--tb-soft);font-weight:400}
.tb .tb-facts dd{width:auto;float:none;margin:0;text-align:right;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.jp-OutputArea-output.jp-RenderedHTMLCommon .tb{margin:0 -18px 0 2px}
@media print{.tb .tb-card,.tb .tb-sample,.tb tr{break-inside:avoid}}
.tb .tb-problem{border-left:3px solid var(--tb-bad);padding-left:8px;margin:2px 0 4px}
"""

_CHECKS_CSS = """
.tb.tb-checks .tb-top{display:flex;flex-wrap:wrap;gap:6px 10px;align-items:center;margin:8px 0 10px}
.tb.tb-checks .tb-time{margin-left:auto}
.tb.tb-checks .tb-card{padding:4px 16px}
.tb.tb-checks .tb-name{font-weight:600;width:11em}
.tb.tb-checks .tb-verdict{width:7.5em}
.tb.tb-checks th,.tb.tb-checks td{padding:7px 14px 7px 0}
.tb.tb-checks .tb-finding{margin:0 0 8px;padding-left:10px;border-left:3px solid var(--tb-c)}
.tb.tb-checks .tb-rows .tb-finding:last-child{margin-bottom:0}
.tb.tb-checks .tb-do{margin-top:2px}
.tb.tb-checks .tb-do strong{font-weight:600}
.tb.tb-checks summary{font-size:12px;padding:2px 0}
.tb.tb-checks .tb-said{margin:0}
.tb.tb-checks .tb-said summary{font-size:inherit;color:inherit;padding:0}
.tb.tb-checks .tb-nothing{padding:6px 0 0}
.tb.tb-checks .tb-values{font-size:12px;margin-top:4px}
.tb.tb-checks .tb-values th,.tb.tb-checks .tb-values td{padding:3px 14px 3px 0}
.tb.tb-checks .tb-values tbody th{font-weight:400}
.tb.tb-checks .tb-values .tb-limit{white-space:nowrap}
.tb.tb-checks .tb-others{font-size:12px;margin-top:6px}
.tb.tb-checks .tb-others span{margin-right:2px}
.tb.tb-checks .tb-others strong{font-weight:500;margin-right:12px}
.tb .tb-picture{margin-top:8px;overflow-x:auto}
.tb .tb-picture svg{min-width:320px}
.tb img{display:block;max-width:min(100%,720px);height:auto;margin-top:8px;border-radius:6px;border:1px solid var(--tb-line)}
.tb .tb-tokens{margin-top:8px;display:flex;flex-wrap:wrap;gap:4px}
.tb .tb-token{display:inline-flex;flex-direction:column;align-items:center;padding:1px 6px;border-radius:4px;
white-space:pre}
.tb .tb-token small{font-size:11px;opacity:.85}
@container (max-width:480px){
.tb .tb-plot svg{width:560px}
}
@container (max-width:720px){
.tb.tb-checks .tb-rows .tb-name,.tb.tb-checks .tb-rows .tb-verdict,.tb.tb-checks .tb-rows .tb-measured{
display:inline-block;border-bottom:0;padding:6px 10px 0 0;width:auto}
.tb.tb-checks .tb-rows .tb-measured{display:block;padding-bottom:8px;border-bottom:1px solid var(--tb-line)}
.tb.tb-checks .tb-rows tr:last-child .tb-measured{border-bottom:0}
.tb.tb-checks .tb-head{display:none}
.tb.tb-checks .tb-values .tb-limit{white-space:normal}
}
"""

# Controls of ipywidgets 7.7 and 8, which have the same class names. What ipywidgets writes into style attributes
# (the width of a label) can only be overridden with !important.
_CONTROLS_CSS = """
.tb .jupyter-button{width:auto;height:32px;line-height:30px;padding:0 14px;margin:2px 6px 2px 2px;border-radius:6px;
border:1px solid var(--tb-line);background:transparent;color:var(--tb-ink);font:inherit;font-weight:500;line-height:30px;
box-shadow:none;text-transform:none}
.tb .jupyter-button:hover:enabled{background:color-mix(in srgb,var(--tb-ink) 8%,transparent);box-shadow:none}
.tb .jupyter-button:focus-visible{outline:2px solid var(--tb-accent);outline-offset:1px}
.tb .jupyter-button:disabled,.tb .jupyter-button.tb-busy{opacity:.55}
.tb .jupyter-button.mod-primary,.tb .jupyter-button.mod-primary:hover:enabled{background:PRIMARY;border-color:PRIMARY;
color:#fff}
.tb .jupyter-button.tb-danger{color:var(--tb-bad);border-color:var(--tb-bad)}
.tb .tb-steps{gap:4px 6px;margin:0 0 8px}
.tb .tb-steps .jupyter-button{flex:0 0 clamp(0px,calc((700px - 100%)*999),30%);
min-width:max-content;padding:0 10px;border-radius:99px;margin:0;
color:var(--tb-c);border-color:var(--tb-line)}
.tb .tb-steps .tb-state-open{--tb-c:var(--tb-soft)}
.tb .tb-steps .tb-state-done{--tb-c:var(--tb-good)}
.tb .tb-steps .tb-state-problem{--tb-c:var(--tb-bad);border-color:var(--tb-bad)}
.tb .tb-steps .tb-state-current{font-weight:600;border-color:var(--tb-accent);
background:color-mix(in srgb,var(--tb-accent) 10%,transparent)}
.tb .tb-steps .tb-state-current:not(.tb-state-problem){--tb-c:var(--tb-accent)}
.tb .tb-page{border:1px solid var(--tb-line);border-radius:8px;background:var(--tb-card);padding:12px 16px;margin:6px 0}
.tb .tb-fields{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:8px 24px;
align-items:start;overflow:visible;margin-bottom:6px}
.tb .tb-fields .widget-inline-hbox{width:100%;max-width:none!important;margin:2px 0}
.tb .tb-fields .widget-text,.tb .tb-fields .widget-dropdown{flex-direction:column;align-items:stretch;height:auto;margin:0}
.tb .tb-fields .widget-text .widget-label,.tb .tb-fields .widget-dropdown .widget-label{width:auto!important;
text-align:left;font-weight:600;line-height:1.45;height:auto}
.tb .tb-fields .widget-text input,.tb .tb-fields .widget-dropdown select{flex:none}
.tb input[type=text],.tb input[type=number],.tb select,.tb textarea{height:30px;border:1px solid var(--tb-line);
border-radius:6px;background-color:transparent;color:var(--tb-ink);font:inherit}
.tb select option{color:#1f2328;background:#fff}
.tb .widget-dropdown select{appearance:none;padding-right:24px;background-size:5px 5px;background-repeat:no-repeat;
background-position:right 13px center,right 8px center;background-image:
linear-gradient(45deg,transparent 50%,var(--tb-ink) 50%),linear-gradient(135deg,var(--tb-ink) 50%,transparent 50%)}
.tb textarea{height:auto;font:12px/1.5 var(--jp-code-font-family,ui-monospace,monospace)}
.tb .tb-fields .widget-checkbox .widget-label:first-child{display:none}
.tb .tb-fields .widget-checkbox{height:auto;margin:0}
.tb .tb-fields .widget-checkbox .widget-label-basic{font-weight:600}
.tb .tb-topic{overflow:visible;margin:0}
.tb .tb-topic .tb-fields:empty{margin:0}
.tb .tb-fields .tb-across{grid-column:1/-1}
.tb .tb-fields .tb-across .widget-dropdown select,.tb .tb-fields .tb-across.widget-dropdown select{align-self:flex-start;
width:auto;min-width:min(100%,300px);max-width:100%}
.tb .tb-cards{display:block;height:auto;margin:0}
.tb .tb-cards .widget-label{display:block;width:auto!important;text-align:left;font-weight:600;line-height:1.45;height:auto}
.tb .tb-cards div{display:grid;grid-template-columns:repeat(auto-fit,minmax(clamp(17%,calc((700px - 100%)*999),30%),1fr));
gap:8px;overflow:visible}
.tb .tb-cards .jupyter-button{height:auto;width:auto!important;margin:0;padding:8px 12px;line-height:1.45;white-space:pre-line;
text-align:left;align-content:start;font-size:12px;font-weight:400;color:var(--tb-soft);border-radius:8px;display:block;
overflow-wrap:anywhere}
.tb .tb-cards .jupyter-button::first-line{font-size:13px;font-weight:600;color:var(--tb-ink)}
.tb .tb-fields .tb-cards .jupyter-button.mod-active{font-weight:400;color:var(--tb-soft);
box-shadow:inset 0 0 0 1px var(--tb-accent);background:color-mix(in srgb,var(--tb-accent) 10%,transparent)}
.tb .tb-fields .tb-cards .jupyter-button.mod-active::first-line{color:var(--tb-accent)}
.tb .tb-topic .tb-fold{border-color:transparent;padding:0 8px;margin:0 0 0 -8px;font-weight:600}
.tb .tb-topic .tb-fields{padding-left:4px}
.tb .tb-preset .widget-label{width:auto!important;font-weight:600}
.tb .tb-run-row{border-bottom:1px solid var(--tb-line);align-items:center;overflow:visible}
.tb .tb-run-cells{display:flex;flex-wrap:wrap;gap:2px 14px;align-items:center;font-variant-numeric:tabular-nums}
.tb .tb-run-state{flex:0 0 100px}
.tb .tb-run-progress{flex:0 0 206px}
.tb .tb-run-best{flex:0 0 140px}
.tb .tb-run-trained{flex:0 0 112px}
.tb .tb-run-tags{flex:1 1 160px;overflow-wrap:anywhere}
.tb .tb-run-tick{height:auto;margin:2px}
.tb .tb-run-tick .widget-label-basic{display:flex;gap:6px;align-items:baseline;font-weight:600;line-height:1.35;
white-space:normal;overflow-wrap:anywhere}
.tb .tb-run-tick input{flex:none;margin:0;align-self:flex-start;margin-top:2px}
.tb .tb-play-picture{align-self:flex-start;object-fit:contain}
.tb .tb-mixture-dataset{border-bottom:1px solid var(--tb-line);padding:6px 0;overflow:visible}
.tb .tb-mixture-dataset .widget-inline-hbox,.tb .tb-mixture-share{margin-right:12px}
.tb .tb-runs-notes .widget-label,.tb .tb-runs-tags .widget-label,.tb .tb-play-prompt .widget-label{width:auto!important;
font-weight:600}
.tb .widget-label{color:var(--tb-ink)}
.tb .widget-html-content{line-height:1.45}
.tb .widget-toggle-buttons .jupyter-button.mod-active{border-color:var(--tb-accent);color:var(--tb-accent);font-weight:600}
.tb .tb-style,.tb .tb-gone{display:none}
.tb .tb-gone.jupyter-widgets-disconnected{display:block;order:-1;
border-left:3px solid var(--tb-warn);padding-left:8px;margin:2px 0 8px}
.tb.tb-panel.jupyter-widgets-disconnected::before,.tb .jupyter-widgets-disconnected::before{content:none}
.tb .jupyter-button.jupyter-widgets-disconnected{opacity:.45;pointer-events:none}
.tb.tb-dashboard .jupyter-button.jupyter-widgets-disconnected{display:none}
.tb .tb-live.jupyter-widgets-disconnected{opacity:.7}
.tb .tb-live.jupyter-widgets-disconnected .tb-pill,.tb .tb-live.jupyter-widgets-disconnected .tb-right{display:none}
"""


def _tokens() -> str:
    colours = ";".join(f"--tb-{name}:{token.css}" for name, token in TOKENS.items())
    return f".tb{{--tb-ink:{INK};{colours}}}"


# Front ends style tables, buttons and inputs of their own; by naming the class three times these rules come before theirs.
_FIRST = ".tb.tb.tb"


def _strong(css: str) -> str:
    return css.replace(".tb ", f"{_FIRST} ").replace(".tb.tb-checks ", f"{_FIRST}.tb-checks ")


@cache
def sheet(controls: bool = False) -> Html:
    """The style sheet; with `controls`, the rules for ipywidgets' controls too."""
    css = _tokens() + _strong(_CSS + _CHECKS_CSS + (_CONTROLS_CSS.replace("PRIMARY", PRIMARY) if controls else ""))
    return style_sheet(css)


def styled(*parts: Html, css_class: str = "", **attributes: object) -> Html:
    """Markup with the style sheet, complete in itself: the form of static outputs and files."""
    classes = f"tb {css_class}".strip()
    return element("div", sheet(), joined(parts), class_=classes, **attributes)
