"""How the full screen looks. Colours are the theme's; what matters is told apart without them, too."""

CSS = """
#transcript { padding: 1 2 0 2; scrollbar-size-vertical: 1; }
#transcript:focus { background-tint: $foreground 3%; }
UserTurn, AnswerText, ToolCall { max-width: 120; }
UserTurn { margin: 1 0 1 8; padding: 0 1; background: $boost; border-left: outer $text-primary; }
AnswerText { margin: 0; padding: 0; background: transparent; }
AnswerText MarkdownHeader, AnswerText .header { color: $text-primary; }
ToolCall { margin: 0 0 1 0; padding: 0 1; border: none; background: $panel; }
ToolCall CollapsibleTitle { width: 1fr; height: auto; }
ToolCall Static { color: $text-muted; }
.note { color: $text-muted; margin: 0 0 1 0; }
.error { color: $text-error; text-style: bold; margin: 0 0 1 0; }
PromptArea {
  height: auto; min-height: 3; max-height: 10; border: round $foreground 40%; border-subtitle-color: $foreground;
}
PromptArea:focus { border: round $text-primary; }
#status { height: 1; padding: 0 2; color: $text-muted; }
#keys { height: 1; padding: 0 2; background: $panel; color: $foreground; link-style: none; link-color: $foreground; }
ToastRack { dock: top; align: right top; }
Toast { padding: 0 1; max-width: 70%; }

.low #transcript { padding: 0 1; }
.low UserTurn { margin: 0 0 0 2; }
.low PromptArea { max-height: 4; }
.low #status { padding: 0 1; }
.low #keys { display: none; }

ModalScreen { align: center middle; }
ModalScreen > Vertical {
  width: 90%; max-width: 90; height: auto; max-height: 90%; padding: 0 1;
  border: round $text-primary; background: $surface;
}
ModalScreen OptionList { height: auto; max-height: 16; border: none; }
ModalScreen Input { height: 1; border: none; padding: 0 1; background: $boost; }
ModalScreen Input:focus { border: none; background: $accent 30%; text-style: bold; }
ModalScreen Horizontal { height: 1; }
ModalScreen Label { width: 21; max-width: 60%; }
SamplingScreen VerticalScroll { height: auto; max-height: 100%; }
ModalScreen .note, ModalScreen .error { margin: 0; }
HelpScreen VerticalScroll { height: auto; max-height: 100%; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }

ModalScreen.low > Vertical { width: 100%; max-height: 100%; }
ChatsScreen.low > Vertical { height: 100%; }
ChatsScreen.low OptionList { height: 1fr; max-height: 100%; }
"""
